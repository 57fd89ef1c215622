"""What dropout's kernels are to compute, and orders of elements to try them with."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from support.tensors import computing_type

Dims = tuple[tuple[int, int], ...]  # (size, mask stride), outermost in memory first
MASKED: dict[str, Dims] = {
    "one for all": ((300, 0),),
    "channels": ((6, 1), (35, 0)),
    "channels of one word": ((40, 1), (3, 0)),
    "steps in a sequence": ((9, 0), (37, 1)),
    "batch first": ((5, 31), (9, 0), (31, 1)),
    "short rows": ((50, 2), (3, 0), (2, 1)),
    "a matrix's columns": ((33, 1), (65, 33)),
    "few rows and columns": ((2, 1), (3, 2)),
    "channels_last": ((2, 40 * 70), (70, 1), (40, 70)),
    "channels_last of 3": ((3, 3 * 50), (50, 1), (3, 50)),
    "channels_last of a video": ((2, 3 * 64), (2, 32), (32, 1), (3, 64)),
    "reversed": ((5, 1), (6, 5), (7, 30)),
    "many": ((2, 1), (2, 0), (3, 2), (2, 0), (2, 6), (3, 0), (2, 12), (2, 0), (3, 24)),
}


def mapped(
    input: Tensor,
    kept: Tensor,
    scale: float,
    fill: float = 0.0,
    residual: Tensor | None = None,
    shift: float = 0.0,
) -> Tensor:
    """(kept ? scale * input + shift : fill) + residual, rounded once to the dtype."""
    wide = computing_type(input.dtype)
    scaled = input.to(wide) * scale
    result = torch.where(kept, scaled + shift if shift else scaled, fill)
    return (result if residual is None else result + residual.to(wide)).to(input.dtype)


def bits_in_order(dims: Dims) -> np.ndarray:
    """The bit of each element, in the order of memory."""
    indices = np.indices([size for size, _ in dims]).reshape(len(dims), -1)
    return sum(index * stride for index, (_, stride) in zip(indices, dims, strict=True))


def packed(kept: Tensor) -> np.ndarray:
    """The mask as draw_groups leaves it: whole groups, with ones past the end."""
    padded = np.ones(-(-kept.numel() // 128) * 128, bool)
    padded[: kept.numel()] = kept.numpy()
    words = np.packbits(padded, bitorder="little").view("<u4")
    words.flags.writeable = False
    return words
