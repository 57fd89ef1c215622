"""DropConnect with its masks written out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fused_dropout.reference._masks import Convention, keep_rate
from fused_dropout.reference._masks import mask as keep_mask

MaskMode = Literal["row", "example", "batch"]


def rows_per_mask(input_shape: Sequence[int], mask: MaskMode | int) -> int:
    """How many consecutive rows of the flattened input share a mask.

    Args:
        input_shape: ``[..., in_features]``.
        mask: ``"row"`` (none), ``"example"`` (those of one item of the first dimension),
            ``"batch"`` (all), or the number of rows itself.

    Returns:
        An int of at least 1.
    """
    rows = math.prod(input_shape[:-1])
    if isinstance(mask, int):
        return mask
    if mask == "row" or rows == 0:
        return 1
    if mask == "batch" or len(input_shape) == 1:
        return rows
    return rows // input_shape[0]


def dropconnect_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    p: float = 0.5,
    training: bool = True,
    *,
    mask: MaskMode | int = "example",
    seed: int,
    offset: int = 0,
    convention: Convention = "inverted",
    mask_bias: bool = True,
) -> Tensor:
    """DropConnect (Wan et al. 2013) with a mask for every example, written out.

    It takes the memory of a float mask ``[masks, out_features, in_features]``.

    Args:
        input: ``[..., in_features]``.
        weight: ``[out_features, in_features]``.
        bias: ``[out_features]`` or None.
        p: drop probability in [0, 1].
        training: if False, the plain linear layer (times q with ``convention="paper"``).
        mask: the rows that share a mask: ``"row"`` (none), ``"example"`` (those of one item of the
            first dimension), ``"batch"`` (all), or a number of rows.
        seed, offset: the random state, ints modulo 2^64.
        convention: ``"inverted"`` divides by the keep rate q in training; ``"paper"`` multiplies by
            q in evaluation instead.
        mask_bias: whether the bias is masked and scaled too; if not, it is added as it is.

    Returns:
        A tensor ``[..., out_features]``; gradients are plain autograd's.
    """
    if bias is not None and not mask_bias:
        products = dropconnect_linear(
            input, weight, None, p, training,
            mask=mask, seed=seed, offset=offset, convention=convention,
        )  # fmt: skip
        return products + bias
    q = keep_rate(p)
    if not training:
        output = torch.nn.functional.linear(input, weight, bias)
        return output * q if convention == "paper" else output
    out_features, in_features = weight.shape
    rows = input.reshape(math.prod(input.shape[:-1]), in_features)
    share = rows_per_mask(input.shape, mask)
    n_masks = -(-rows.shape[0] // share)
    which = torch.arange(rows.shape[0], device=input.device) // share

    def draw(shape: tuple[int, ...], stream: int) -> Tensor:
        return keep_mask(shape, p, seed=seed, offset=offset, stream=stream, device=input.device)

    kept = draw((n_masks, out_features, in_features), stream=0)
    # where, not a product: a dropped infinity must leave 0, not NaN.
    products = torch.where(kept[which], weight * rows[:, None, :], torch.zeros_like(weight[:1, :1]))
    output = products.sum(-1)
    if bias is not None:
        kept_bias = draw((n_masks, out_features), stream=1)
        output = output + torch.where(kept_bias[which], bias, torch.zeros_like(bias[:1]))
    if convention == "inverted":
        output = output / q if q > 0 else output * 0
    return output.reshape(*input.shape[:-1], out_features)
