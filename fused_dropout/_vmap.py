"""Batching rules: how torch.func.vmap runs the operators.

Items that share their random state (``randomness="same"``) share their masks, which one call on the
whole batch can do. Everything else runs item by item, as it would without a rule.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

Dims = tuple[Any, ...]  # of each argument, the dimension that counts the items, an int, if any
Batched = tuple[Tensor, int]  # a result, and its dimension that counts the items


def register() -> None:
    """Registers them once, after the extension has defined the operators."""
    for name, rule in RULES.items():
        operator = getattr(torch.ops.fused_dropout, name).default
        torch.library.register_vmap(f"fused_dropout::{name}", partial(rule, operator))


def _dropout(operator: Callable[..., Tensor], info: Any, in_dims: Dims, *args: Any) -> Batched:
    input, residual, rng_state, p, shared_dims, *affine = args
    if in_dims[2] is not None:
        return _item_by_item(operator, info, in_dims, args)
    input = _items_first(input, in_dims[0], info.batch_size)
    if residual is not None:
        residual = _items_first(residual, in_dims[1], info.batch_size)
    shared = [0, *(dim + 1 for dim in shared_dims)]
    return operator(input, residual, rng_state, p, shared, *affine), 0


def _dropconnect_linear(
    operator: Callable[..., Tensor], info: Any, in_dims: Dims, *args: Any
) -> Batched:
    input, weight, bias, rng_state, p, rows_per_mask, rescale, mask_bits = args
    if in_dims[0] is None or any(dim is not None for dim in in_dims[1:]):
        return _item_by_item(operator, info, in_dims, args)
    # Row n of every item has the same mask, so these rows follow each other.
    rows = input.movedim(in_dims[0], 1)
    shared = rows_per_mask * info.batch_size
    flat = rows.reshape(-1, rows.shape[-1])
    output = operator(flat, weight, bias, rng_state, p, shared, rescale, mask_bits)
    return output.reshape(*rows.shape[:2], output.shape[-1]), 1


RULES = {"dropout": _dropout, "dropconnect_linear": _dropconnect_linear}


def _items_first(tensor: Tensor, dim: int | None, items: int) -> Tensor:
    return tensor.expand(items, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _item_by_item(
    operator: Callable[..., Tensor], info: Any, in_dims: Dims, args: tuple[Any, ...]
) -> Batched:
    calls = (
        [
            arg.select(dim, item) if isinstance(dim, int) else arg
            for arg, dim in zip(args, in_dims, strict=True)
        ]
        for item in range(info.batch_size)
    )
    return torch.stack([operator(*call) for call in calls]), 0
