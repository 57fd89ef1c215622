"""The weights that nn.WeightDrop runs a module with, and embeddings without dropped words."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fused_dropout.reference._mask_weight import mask_weight
from fused_dropout.reference._masks import keep_rate
from fused_dropout.reference._masks import mask as keep_mask


def weight_drop(
    weight: Tensor,
    p: float = 0.5,
    mode: Literal["connection", "row", "column"] = "connection",
    *,
    seed: int,
    offset: int = 0,
) -> Tensor:
    """A parameter as a module with WeightDrop uses it in training.

    Args:
        weight: the parameter.
        p: drop probability in [0, 1].
        mode: ``"connection"``: :func:`mask_weight`. ``"row"`` and ``"column"``: entry k of the
            first or second dimension has element k of one row of the bit matrix.
        seed, offset: the random state, ints modulo 2^64.

    Returns:
        A tensor of the shape of ``weight``.
    """
    if mode == "connection":
        return mask_weight(weight, p, seed=seed, offset=offset)
    dim = 0 if mode == "row" else 1
    kept = keep_mask((1, weight.shape[dim]), p, seed=seed, offset=offset, device=weight.device)
    sizes = [weight.shape[dim] if d == dim else 1 for d in range(weight.dim())]
    masked = torch.where(kept.view(sizes), weight, torch.zeros_like(weight))
    q = keep_rate(p)
    return masked / q if q > 0 else masked


def embedding_dropout(
    input: Tensor, weight: Tensor, p: float = 0.5, *, seed: int, offset: int = 0
) -> Tensor:
    """The rows of ``weight`` that ``input`` names, some of them dropped.

    Args:
        input: indices, any shape.
        weight: ``[num_embeddings, embedding_dim]``; row k has element k of one row of the bit
            matrix.
        p: drop probability in [0, 1].
        seed, offset: the random state, ints modulo 2^64.

    Returns:
        A tensor ``[*input.shape, embedding_dim]``.
    """
    return weight_drop(weight, p, "row", seed=seed, offset=offset)[input.long()]
