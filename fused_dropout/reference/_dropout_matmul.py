"""A product with a dropped operand."""

from __future__ import annotations

from torch import Tensor

from fused_dropout.reference._dropout import dropout


def dropout_matmul(
    input: Tensor, other: Tensor, p: float = 0.5, *, seed: int, offset: int = 0
) -> Tensor:
    """``dropout(input) @ other``, as in training.

    Args:
        input: ``[..., M, K]``, floating point.
        other: ``[..., K, N]``, of the same dtype.
        p: drop probability in [0, 1].
        seed, offset: the random state, ints modulo 2^64.

    Returns:
        ``[..., M, N]``; gradients are plain autograd's.
    """
    return dropout(input, p, seed=seed, offset=offset) @ other
