"""Predictions with masks of their own, or with masks that the items of a batch share."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fused_dropout._core import checks
from fused_dropout._core.private_torch import flatten, unflatten

Predict = Callable[..., Tensor]  # of the tensors in the model's arguments


def split_arguments(
    x: Any, kwargs: Any
) -> tuple[list[Tensor], Callable[[Callable[..., Any], list[Tensor]], Any]]:
    """The tensors in the arguments, and what calls a model with others in their places."""
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise TypeError(f"kwargs must be a dict, got {type(kwargs).__name__}")
    if x is not None and not isinstance(x, (Tensor, Mapping, list, tuple)):
        raise TypeError(f"x must be a Tensor or a dict, list or tuple, got {type(x).__name__}")
    positional = () if x is None else (dict(x) if isinstance(x, Mapping) else x,)
    leaves, structure = flatten((positional, dict(kwargs or {})))
    places = [place for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    if not places:
        raise TypeError(f"x or kwargs must hold a Tensor, got x of type {type(x).__name__}")
    for place in places:
        in_x = place < len(flatten(positional)[0])
        checks.check_dense(leaves[place], "x" if in_x else "kwargs")

    def call(model: Callable[..., Any], tensors: list[Tensor]) -> Any:
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        arguments, keywords = unflatten(filled, structure)
        return model(*arguments, **keywords)

    return [leaves[place] for place in places], call


def predictions(predict: Predict, tensors: list[Tensor], count: int, share: bool) -> Tensor:
    """``count`` predictions, [count, *output.shape]; ``share``: all items have the same masks."""
    if count == 1 and not share:
        return predict(*tensors)[None]
    if not share:
        return _several(predict, tensors, count)
    # Items outside: the other way round vmap refuses more of the draws that write in place.
    one = functools.partial(_of_one_item, predict, count)
    try:
        shared: Tensor = torch.func.vmap(one, randomness="same", out_dims=1)(*tensors)
        return shared
    except RuntimeError as error:
        raise RuntimeError(
            f"the model failed in torch.func.vmap, which masks='pass' needs: {error}"
        ) from error


def _several(predict: Predict, tensors: Sequence[Tensor], count: int) -> Tensor:
    """Predictions in one vmap.

    Expanded tensors make it draw for each prediction even in layers that change their input.
    """
    expanded = (tensor.expand(count, *tensor.shape) for tensor in tensors)
    several: Tensor = torch.func.vmap(predict, randomness="different")(*expanded)
    return several


def _of_one_item(predict: Predict, count: int, *item: Tensor) -> Tensor:
    """[count, ...]: the predictions of a batch that holds one item."""
    batch = [tensor.unsqueeze(0) for tensor in item]
    outputs = predict(*batch)[None] if count == 1 else _several(predict, batch, count)
    if outputs.dim() == 1 or outputs.shape[1] != 1:
        raise RuntimeError(
            "masks='pass' takes a model whose output has a row for each item of x; for one item it "
            f"has shape {list(outputs.shape[1:])}"
        )
    return outputs.squeeze(1)


def check_rows(tensors: list[Tensor]) -> None:
    """All tensors have a row for each item."""
    if any(tensor.dim() == 0 for tensor in tensors):
        raise RuntimeError("masks='pass' takes x [N, ...], got a tensor without dimensions")
    rows = [len(tensor) for tensor in tensors]
    if len(set(rows)) > 1:
        raise RuntimeError(f"masks='pass' takes tensors with a row per item, got {rows} rows")


def checked_output(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(
            f"the model's output must be a Tensor, got {type(output).__name__}; transform= can "
            "pick one"
        )
    if not output.is_floating_point():
        raise RuntimeError(f"the model's output must be floating point, got {output.dtype}")
    return output
