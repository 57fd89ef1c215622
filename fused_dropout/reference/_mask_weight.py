"""Weights under DropConnect's masks, written out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fused_dropout.reference._masks import Convention, keep_rate
from fused_dropout.reference._masks import mask as keep_mask


def mask_weight(
    weight: Tensor,
    p: float = 0.5,
    training: bool = True,
    *,
    masks: int | None = None,
    seed: int,
    offset: int = 0,
    convention: Convention = "inverted",
) -> Tensor:
    """``weight`` times the masks of a DropConnect layer, and times the scale.

    Mask k has row ``k * out_features + o`` of the bit matrix for output feature o.

    Args:
        weight: ``[out_features, ...]``, whose other dimensions count as one; a vector is one row.
        p: drop probability in [0, 1].
        training: if False, ``weight`` itself (times q with ``convention="paper"``).
        masks: how many masks; None is one mask without a dimension for it.
        seed, offset: the random state, ints modulo 2^64.
        convention: ``"inverted"`` divides by the keep rate q in training; ``"paper"`` multiplies by
            q in evaluation instead.

    Returns:
        A tensor of the shape of ``weight``, or ``[masks, *weight.shape]``.
    """
    q = keep_rate(p)
    count = 1 if masks is None else masks
    stack = weight.expand(count, *weight.shape)
    if training:
        rows = weight.shape[0] if weight.dim() > 1 else 1
        cols = math.prod(weight.shape[1:]) if weight.dim() > 1 else weight.shape[0]
        kept = keep_mask((count * rows, cols), p, seed=seed, offset=offset, device=weight.device)
        # where, not a product: a dropped infinity must leave 0, not NaN.
        stack = torch.where(kept.view(stack.shape), stack, torch.zeros_like(weight))
        if convention == "inverted" and q > 0:
            stack = stack / q
    elif convention == "paper":
        stack = stack * q
    return stack[0] if masks is None else stack
