"""The specification in readable NumPy and torch: what every kernel of this package must compute.

Nothing here is fast, and nothing here calls the compiled extension. The mask functions restate
csrc/common/mask.h; tests hold the two, and every backend, to the same golden words.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

GROUP = 128  # consecutive columns whose digit s is one Philox output
Words = NDArray[np.uint32]


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
    """T = rint((1 - p) 2^digits): an element is kept iff its fraction u < T / 2^digits."""
    return round((1.0 - p) * 2**digits)


def keep_rate(p: float, digits: int = 16) -> float:
    """q = T / 2^digits, the rate at which elements are really kept; the scale is exactly 1/q."""
    return threshold(p, digits) / 2**digits


def fraction_digit(
    s: int, groups: NDArray[np.uint64], seed: int, offset: int, stream: int
) -> NDArray[np.uint8]:
    """Digit s (0 = most significant) of the fractions of all 128 elements of each group.

    Returns:
        uint8 0 or 1, ``[*groups.shape, 128]``.
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
    """The keep mask [rows, cols]: u < T / 2^digits, compared as integers U < T."""
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
    """The keep mask of ``shape`` as a bool tensor; see :func:`fused_dropout.mask`.

    Drawn by NumPy, then moved to ``device``.
    """
    sizes = (shape,) if isinstance(shape, int) else tuple(shape)
    rows, cols = math.prod(sizes[:-1]), sizes[-1] if sizes else 1
    kept = mask_matrix(rows, cols, p, seed, offset, stream, digits)
    return torch.as_tensor(np.ascontiguousarray(kept), device=device).reshape(sizes)


def rows_per_mask(input_shape: Sequence[int], mask: str | int) -> int:
    """How many consecutive rows of the flattened input [..., in_features] share a mask."""
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
    mask: str | int = "example",
    seed: int,
    offset: int = 0,
    convention: str = "inverted",
) -> Tensor:
    """DropConnect (Wan et al. 2013) with its masks written out; gradients are plain autograd's.

    Memory: a float mask [masks, out_features, in_features]. Arguments and shapes as
    :func:`fused_dropout.functional.dropconnect_linear`.
    """
    q = keep_rate(p)
    if not training:
        output = torch.nn.functional.linear(input, weight, bias)
        return output * q if convention == "paper" else output
    out_features, in_features = weight.shape
    rows = input.reshape(math.prod(input.shape[:-1]), in_features)
    share = rows_per_mask(input.shape, mask)
    n_masks = -(-rows.shape[0] // share)
    which = torch.arange(rows.shape[0], device=input.device) // share
    kept = _mask((n_masks * out_features, in_features), p, seed, offset, 0, input.device)
    kept = kept.view(n_masks, out_features, in_features)
    # where, not a product: a dropped infinity must leave 0, not NaN.
    products = torch.where(kept[which], weight * rows[:, None, :], torch.zeros_like(weight[:1, :1]))
    output = products.sum(-1)
    if bias is not None:
        kept_bias = _mask((n_masks, out_features), p, seed, offset, 1, input.device)
        output = output + torch.where(kept_bias[which], bias, torch.zeros_like(bias[:1]))
    if convention == "inverted":
        output = output / q if q > 0 else output * 0
    return output.reshape(*input.shape[:-1], out_features)


def _mask(
    shape: tuple[int, int], p: float, seed: int, offset: int, stream: int, device: torch.device
) -> Tensor:
    kept = mask_matrix(*shape, p, seed, offset, stream, 16)
    return torch.as_tensor(np.ascontiguousarray(kept), device=device)
