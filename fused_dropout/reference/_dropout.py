"""Dropout of every kind with its masks written out; gradients are plain autograd's.

Arguments and shapes as the functions of these names in ``fused_dropout.functional``, always in
training; ``seed`` and ``offset`` are the random state.
"""

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
    """``input / q`` where the mask keeps it, else 0; unscaled in the paper's convention."""
    q = keep_rate(p)
    kept = shared_mask(input, p, broadcast_dims, seed, offset)
    scale = 1 / q if convention == "inverted" and q > 0 else 1.0
    return torch.where(kept, input * scale, 0.0)


def dropout1d(input: Tensor, p: float = 0.5, *, seed: int, offset: int = 0) -> Tensor:
    """One mask element for each channel of ``[N, C, L]`` or ``[C, L]``."""
    shared = range(input.dim() - 1, input.dim())
    return dropout(input, p, broadcast_dims=shared, seed=seed, offset=offset)


def dropout2d(input: Tensor, p: float = 0.5, *, seed: int, offset: int = 0) -> Tensor:
    """One for each channel of ``[N, C, ...]``."""
    shared = range(2, input.dim())
    return dropout(input, p, broadcast_dims=shared, seed=seed, offset=offset)


def dropout3d(input: Tensor, p: float = 0.5, *, seed: int, offset: int = 0) -> Tensor:
    """One for each channel of ``[N, C, D, H, W]``, or of ``[C, ...]`` with fewer dimensions."""
    shared = range(2 if input.dim() == 5 else 1, input.dim())
    return dropout(input, p, broadcast_dims=shared, seed=seed, offset=offset)


def locked_dropout(
    input: Tensor, p: float = 0.5, *, batch_first: bool = False, seed: int, offset: int = 0
) -> Tensor:
    """One mask for all steps of ``[T, N, ...]``, or of ``[N, T, ...]`` with ``batch_first``."""
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
    """SELU's floor where the mask drops; an affine map keeps mean 0 and variance 1."""
    q = keep_rate(p)
    if q == 0:  # zeros, also of infinities and NaNs, where a product has none
        return torch.where(torch.zeros_like(input, dtype=torch.bool), input, 0.0)
    dropped = 1 - q
    a = 1 / math.sqrt(q + SELU_FLOOR**2 * dropped * q)
    b = -a * SELU_FLOOR * dropped
    kept = shared_mask(input, p, broadcast_dims, seed, offset)
    return torch.where(kept, a * input + b, a * SELU_FLOOR + b)


def feature_alpha_dropout(input: Tensor, p: float = 0.5, *, seed: int, offset: int = 0) -> Tensor:
    """The same with one mask element for each channel of ``[N, C, ...]``."""
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
