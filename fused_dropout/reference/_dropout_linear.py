"""A linear layer whose input is dropped, with the dropped input written out."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_dropout.reference._dropout import dropout


def dropout_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    p: float = 0.5,
    training: bool = True,
    *,
    seed: int,
    offset: int = 0,
) -> Tensor:
    """A linear layer of the dropped input, ``F.linear(dropout(input, p), weight, bias)``.

    Args:
        input: ``[..., in_features]``.
        weight: ``[out_features, in_features]``.
        bias: ``[out_features]`` or None.
        p: drop probability in [0, 1].
        training: if False, the plain linear layer.
        seed, offset: the random state, ints modulo 2^64.

    Returns:
        A tensor ``[..., out_features]``; gradients are plain autograd's.
    """
    dropped = dropout(input, p, seed=seed, offset=offset) if training else input
    return torch.nn.functional.linear(dropped, weight, bias)
