"""The mask contract: csrc/common/mask.h restated.

Tests hold the two, and every backend, to the same golden words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GROUP = 128  # consecutive columns whose digit s is one Philox output
Words = NDArray[np.uint32]

# "inverted" divides by the keep rate in training, "paper" multiplies by it in evaluation.
Convention = Literal["inverted", "paper"]


def philox4x32_10(counter: Words, key: Sequence[int]) -> Words:
    """Philox4x32, 10 rounds (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").

    Args:
        counter: uint32 ``[..., 4]``.
        key: two 32-bit ints.

    Returns:
        uint32 ``[..., 4]``, the random words.
    """
    low = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = (counter[..., k].astype(np.uint64) for k in range(4))
    k0, k1 = int(key[0]), int(key[1])
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (
            (b >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            b & low,
            (a >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            a & low,
        )
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def threshold(p: float, digits: int = 16) -> int:
    """T = rint((1 - p) 2^digits): an element is kept iff its fraction u < T / 2^digits.

    Args:
        p: drop probability in [0, 1].
        digits: number of binary digits of the keep rate.

    Returns:
        An int in [0, 2^digits].
    """
    return round((1.0 - p) * 2**digits)


def keep_rate(p: float, digits: int = 16) -> float:
    """q = T / 2^digits, the rate at which elements are really kept; the scale is exactly 1/q.

    Args:
        p: drop probability in [0, 1].
        digits: number of binary digits of the keep rate.

    Returns:
        A float in [0, 1].
    """
    return threshold(p, digits) / 2**digits


def fraction_digit(
    s: int, groups: NDArray[np.uint64], seed: int, offset: int, stream: int
) -> NDArray[np.uint8]:
    """Digit s of the fractions of all 128 elements of each group.

    Args:
        s: which digit; 0 is the most significant.
        groups: uint64 array of any shape, the groups' numbers.
        seed, offset: the random state, ints modulo 2^64.
        stream: 0 to 127.

    Returns:
        A uint8 array ``[*groups.shape, 128]`` of 0 and 1.
    """
    counter = np.empty((*groups.shape, 4), dtype=np.uint32)
    counter[..., 0] = groups & np.uint64(0xFFFFFFFF)
    counter[..., 1] = np.uint64(1 << 31 | stream << 24 | s << 16) | groups >> np.uint64(32)
    counter[..., 2] = offset % 2**32
    counter[..., 3] = offset >> 32
    words = philox4x32_10(counter, (seed % 2**32, seed >> 32))
    little_endian = words.astype("<u4").view(np.uint8)
    return np.unpackbits(little_endian, axis=-1, bitorder="little")


def mask_matrix(
    rows: int, cols: int, p: float, seed: int, offset: int, stream: int, digits: int
) -> NDArray[np.bool_]:
    """The keep mask of a matrix: u < T / 2^digits, compared as integers U < T.

    Args:
        rows, cols: the matrix's shape.
        p: drop probability in [0, 1].
        seed, offset: the random state, ints modulo 2^64.
        stream: 0 to 127.
        digits: number of binary digits of the keep rate, 1 to 32.

    Returns:
        A bool array ``[rows, cols]``, True where an element is kept.
    """
    t = threshold(p, digits)
    per_row = -(-cols // GROUP)
    groups = np.arange(rows * per_row, dtype=np.uint64).reshape(rows, per_row)
    fraction = np.zeros((rows, per_row, GROUP), dtype=np.uint64)
    for s in range(digits):
        digit = fraction_digit(s, groups, seed % 2**64, offset % 2**64, stream)
        fraction = fraction * np.uint64(2) + digit
    kept = fraction < np.uint64(t)
    return kept.reshape(rows, per_row * GROUP)[:, :cols]


def mask(
    shape: int | Sequence[int],
    p: float,
    *,
    seed: int,
    offset: int = 0,
    stream: int = 0,
    digits: int = 16,
    device: torch.device | str | None = None,
) -> Tensor:
    """The keep mask of ``shape``, drawn by NumPy: what :func:`fused_dropout.mask` must return.

    Args:
        shape: the mask's shape; an int is a vector.
        p: drop probability in [0, 1].
        seed, offset: the random state, ints modulo 2^64.
        stream: 0 to 127.
        digits: number of binary digits of the keep rate, 1 to 32.
        device: where the drawn mask is moved to; default: the CPU.

    Returns:
        A bool tensor of ``shape``, True where an element is kept.
    """
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    rows, cols = math.prod(sizes[:-1]), sizes[-1] if sizes else 1
    kept = mask_matrix(rows, cols, p, seed, offset, stream, digits)
    return torch.as_tensor(np.ascontiguousarray(kept), device=device).reshape(sizes)
