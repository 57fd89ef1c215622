"""DropBlock in readable NumPy and torch; see :func:`fused_dropout.functional.drop_block2d`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fused_dropout.reference._masks import mask_matrix
from fused_dropout.reference._noise import normal_noise

Normalization = Literal["batch", "sample", "none"]
Gamma = Literal["paper", "exact"]

SEED_DIGITS = 32


def seed_rate(p: float, sizes: Sequence[int], block: Sequence[int], gamma: Gamma) -> float:
    """The drop probability of the seeds on a map of ``sizes``.

    ``"paper"`` is equation (1) of the paper. ``"exact"`` is where the expected share of dropped
    elements is p: an element that n seeds reach is dropped with probability 1 - (1 - gamma)^n.
    """
    places = [size - side + 1 for size, side in zip(sizes, block, strict=True)]
    if gamma == "paper":
        return p * math.prod(sizes) / (math.prod(block) * math.prod(places))
    reached = np.zeros(tuple(sizes))
    for shift in np.ndindex(*block):
        reached[tuple(slice(s, s + n) for s, n in zip(shift, places, strict=True))] += 1
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        too_low = np.mean(1 - (1 - middle) ** reached) < p
        low, high = (middle, high) if too_low else (low, middle)
    return high


def block_mask(
    shape: Sequence[int], block: Sequence[int], gamma: float, seed: int, offset: int = 0
) -> Tensor:
    """Which elements of ``shape`` the dropped blocks leave.

    Seed k of all seeds ``[N, C, sizes - block + 1...]`` in row-major order is bit k of the mask. A
    dropped seed drops the elements from its own position to block - 1 further along each dimension.

    Args:
        shape: ``[N, C, sizes...]``.
        block: a block's sides, one for each of the sizes and at most as large.
        gamma: drop probability of a seed, in [0, 1].
        seed, offset: the random state, ints modulo 2^64.

    Returns:
        A bool tensor of ``shape``, True where an element is kept.
    """
    places = [size - side + 1 for size, side in zip(shape[2:], block, strict=True)]
    seeds = [*shape[:2], *places]
    kept = mask_matrix(1, math.prod(seeds), gamma, seed, offset, 0, SEED_DIGITS).reshape(seeds)
    dropped = np.zeros(shape, dtype=np.bool_)
    for shift in np.ndindex(*block):
        window = tuple(slice(s, s + n) for s, n in zip(shift, places, strict=True))
        every_map = (slice(None), slice(None))
        dropped[every_map + window] |= ~kept
    return torch.from_numpy(~dropped)


def drop_block(
    input: Tensor,
    p: float,
    block_size: int | Sequence[int],
    eps: float = 1e-6,
    *,
    normalize: Normalization = "batch",
    share_channels: bool = False,
    gamma: Gamma = "paper",
    gamma_scale: float = 1.0,
    with_noise: bool = False,
    seed: int,
    offset: int = 0,
) -> Tensor:
    """DropBlock as in training, in as many dimensions as ``input`` has sizes.

    Args:
        input: ``[N, C, sizes...]``.
        p: rate of elements to drop, in [0, 1].
        block_size: a block's sides in elements: one int, or one for each of the sizes.
        eps: added to the number of kept elements before dividing by it.
        normalize: kept elements are scaled up by their share of the ``"batch"`` or of each
            ``"sample"``; ``"none"``: they stay as they are.
        share_channels: all channels of a sample get the same regions.
        gamma: ``"paper"``: a seed's drop probability as in the paper; ``"exact"``: such that the
            expected rate of dropped elements is p.
        gamma_scale: that probability is multiplied by it, and limited to 1.
        with_noise: dropped elements become normal noise, and kept ones are not scaled.
        seed, offset: the random state, ints modulo 2^64.

    Returns:
        A tensor of the shape of ``input``; gradients are plain autograd's.
    """
    sizes = tuple(input.shape[2:])
    sides = (block_size,) * len(sizes) if isinstance(block_size, int) else block_size
    block = tuple(min(side, size) for side, size in zip(sides, sizes, strict=True))
    rate = min(1.0, seed_rate(p, sizes, block, gamma) * gamma_scale)
    channels = 1 if share_channels else input.shape[1]
    kept = block_mask((input.shape[0], channels, *sizes), block, rate, seed, offset)
    if with_noise:
        noise = normal_noise(kept.shape, seed=seed, offset=offset)
        return torch.where(kept, input, noise.to(input.dtype))
    if normalize == "none":
        scale = torch.ones(1, dtype=torch.float64)
    else:
        rows = kept.reshape(1 if normalize == "batch" else kept.shape[0], -1)
        scale = torch.tensor(rows.shape[1]).double() / (rows.sum(1).double() + eps)
    scale = scale.to(input.dtype if input.dtype == torch.float64 else torch.float32)
    scaled = input.to(scale.dtype) * scale.view(-1, *[1] * (input.dim() - 1))
    return torch.where(kept, scaled, 0.0).to(input.dtype)
