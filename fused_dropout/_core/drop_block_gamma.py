"""The rate at which DropBlock drops its seeds, and the rate of dropped elements that follows.

A map of sizes n has n - b + 1 seeds along a dimension where a block has b sides. A dropped seed
drops a whole block, blocks overlap, and elements near the edges are in fewer blocks than others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fused_dropout._core.private_torch import assume_constant_result


def paper_gamma(p: float, sizes: Sequence[int], block: Sequence[int]) -> float:
    """The seeds' drop probability of the paper, equation (1), and of torchvision.

    It makes the expected number of dropped elements p times the map's, counting an element once for
    each block that drops it: the realised rate is lower than p, by the overlaps.

    Args:
        p: the wanted rate of dropped elements.
        sizes: of the map, along 1 to 3 dimensions.
        block: the sides of a block, at most ``sizes``.
    """
    gamma = p
    for size, side in zip(sizes, block, strict=True):
        gamma = gamma * size / (side * (size - side + 1))
    return gamma


@assume_constant_result
def exact_gamma(p: float, sizes: Sequence[int], block: Sequence[int]) -> float:
    """The seeds' drop probability at which the expected rate of dropped elements is p.

    Found by bisection of :func:`expected_drop_rate` to the last digit of a float. Arguments as
    :func:`paper_gamma`.
    """
    return _solve(p, tuple(sizes), tuple(block))


@lru_cache(maxsize=4096)
def _solve(p: float, sizes: tuple[int, ...], block: tuple[int, ...]) -> float:
    if p in (0.0, 1.0):
        return p
    counts, shares = _blocks_per_element(sizes, block)
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        if _drop_rate(middle, counts, shares) < p:
            low = middle
        else:
            high = middle
    return high


def expected_drop_rate(gamma: float, sizes: Sequence[int], block: Sequence[int]) -> float:
    """The expected share of dropped elements when each seed is dropped with probability gamma.

    The mean over a map's elements of 1 - (1 - gamma)^n, where n seeds reach the element.
    """
    if gamma == 1.0:
        return 1.0  # every element is reached by some seed
    return _drop_rate(gamma, *_blocks_per_element(tuple(sizes), tuple(block)))


def _drop_rate(gamma: float, counts: NDArray[np.float64], shares: NDArray[np.float64]) -> float:
    return float(-(shares @ np.expm1(counts * np.log1p(-gamma))))


def _blocks_per_element(
    sizes: tuple[int, ...], block: tuple[int, ...]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The numbers of seeds that reach an element, and the share of elements of each number."""
    counts: NDArray[np.float64] = np.ones(1)
    shares: NDArray[np.float64] = np.ones(1)
    for size, side in zip(sizes, block, strict=True):
        position = np.arange(size)
        reached = np.minimum(position, size - side) - np.maximum(position - side + 1, 0) + 1
        values, elements = np.unique(reached, return_counts=True)
        counts, which = np.unique(np.outer(counts, values), return_inverse=True)
        weights = np.outer(shares, elements / size).ravel()
        shares = np.bincount(which.ravel(), weights).astype(np.float64)
    return counts, shares
