"""Dropout of every kind with its masks written out, always as in training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fused_dropout.reference._masks import Convention, keep_rate, mask

SELU_FLOOR = -1.7580993408473766  # what SELU tends to for large negative inputs


def dropout(
    input: Tensor,
    p: float = 0.5,
    *,
    broadcast_dims: Sequence[int] = (),
    seed: int,
    offset: int = 0,
    convention: Convention = "inverted",
) -> Tensor:
    """``input / q`` where the mask keeps an element, else 0, as in training.

    Args:
        input: floating point tensor of any shape.
        p: drop probability in [0, 1].
        broadcast_dims: dimensions along which the mask is shared.
        seed, offset: the random state, ints modulo 2^64.
        convention: ``"inverted"`` divides by the keep rate q, ``"paper"`` does not.

    Returns:
        A tensor of the shape of ``input``; gradients are plain autograd's.
    """
    q = keep_rate(p)
    kept = shared_mask(input, p, broadcast_dims, seed, offset)
    scale = 1 / q if convention == "inverted" and q > 0 else 1.0
    return torch.where(kept, input * scale, 0.0)


def dropout1d(input: Tensor, p: float = 0.5, *, seed: int, offset: int = 0) -> Tensor:
    """Dropout of whole channels, one mask element each, as in training.

    Args:
        input: ``[N, C, L]`` or ``[C, L]``.
        p: drop probability in [0, 1].
        seed, offset: the random state, ints modulo 2^64.

    Returns:
        A tensor of the shape of ``input``; gradients are plain autograd's.
    """
    shared = range(input.dim() - 1, input.dim())
    return dropout(input, p, broadcast_dims=shared, seed=seed, offset=offset)


def dropout2d(input: Tensor, p: float = 0.5, *, seed: int, offset: int = 0) -> Tensor:
    """Dropout of whole channels, one mask element each, as in training.

    Args:
        input: ``[N, C, ...]``.
        p: drop probability in [0, 1].
        seed, offset: the random state, ints modulo 2^64.

    Returns:
        A tensor of the shape of ``input``; gradients are plain autograd's.
    """
    shared = range(2, input.dim())
    return dropout(input, p, broadcast_dims=shared, seed=seed, offset=offset)


def dropout3d(input: Tensor, p: float = 0.5, *, seed: int, offset: int = 0) -> Tensor:
    """Dropout of whole channels, one mask element each, as in training.

    Args:
        input: ``[N, C, D, H, W]``, or ``[C, ...]`` with another number of dimensions.
        p: drop probability in [0, 1].
        seed, offset: the random state, ints modulo 2^64.

    Returns:
        A tensor of the shape of ``input``; gradients are plain autograd's.
    """
    shared = range(2 if input.dim() == 5 else 1, input.dim())
    return dropout(input, p, broadcast_dims=shared, seed=seed, offset=offset)


def locked_dropout(
    input: Tensor, p: float = 0.5, *, batch_first: bool = False, seed: int, offset: int = 0
) -> Tensor:
    """Dropout of sequences with one mask for all steps, as in training.

    Args:
        input: ``[T, N, ...]``, or ``[N, T, ...]`` with ``batch_first``.
        p: drop probability in [0, 1].
        batch_first: whether the first dimension counts the examples.
        seed, offset: the random state, ints modulo 2^64.

    Returns:
        A tensor of the shape of ``input``; gradients are plain autograd's.
    """
    time = 1 if batch_first else 0
    return dropout(input, p, broadcast_dims=(time,), seed=seed, offset=offset)


def alpha_dropout(
    input: Tensor,
    p: float = 0.5,
    *,
    broadcast_dims: Sequence[int] = (),
    seed: int,
    offset: int = 0,
) -> Tensor:
    """``a input + b`` where the mask keeps an element, else ``a f + b``, as in training.

    f is SELU's floor; a and b keep mean 0 and variance 1.

    Args:
        input: floating point tensor of any shape.
        p: drop probability in [0, 1].
        broadcast_dims: dimensions along which the mask is shared.
        seed, offset: the random state, ints modulo 2^64.

    Returns:
        A tensor of the shape of ``input``; gradients are plain autograd's.
    """
    q = keep_rate(p)
    if q == 0:  # zeros, also of infinities and NaNs, where a product has none
        return torch.where(torch.zeros_like(input, dtype=torch.bool), input, 0.0)
    dropped = 1 - q
    a = 1 / math.sqrt(q + SELU_FLOOR**2 * dropped * q)
    b = -a * SELU_FLOOR * dropped
    kept = shared_mask(input, p, broadcast_dims, seed, offset)
    return torch.where(kept, a * input + b, a * SELU_FLOOR + b)


def feature_alpha_dropout(input: Tensor, p: float = 0.5, *, seed: int, offset: int = 0) -> Tensor:
    """Alpha dropout of whole channels, one mask element each, as in training.

    Args:
        input: ``[N, C, ...]``.
        p: drop probability in [0, 1].
        seed, offset: the random state, ints modulo 2^64.

    Returns:
        A tensor of the shape of ``input``; gradients are plain autograd's.
    """
    shared = range(2, input.dim())
    return alpha_dropout(input, p, broadcast_dims=shared, seed=seed, offset=offset)


def shared_mask(
    input: Tensor, p: float, shared_dims: Sequence[int], seed: int, offset: int
) -> Tensor:
    """The keep mask of ``input``, of size 1 in the dimensions that share it."""
    shared = {dim % input.dim() for dim in shared_dims}
    sizes = [1 if dim in shared else size for dim, size in enumerate(input.shape)]
    kept = mask(math.prod(sizes), p, seed=seed, offset=offset, device=input.device)
    return kept.view(sizes)
