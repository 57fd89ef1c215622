"""Results of the operators that return the masks and the noise themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fused_dropout._ops._constant import Constant


def fake_mask(
    rng_state: Tensor, rows: int, cols: int, p: float, stream: int, digits: int
) -> Tensor:
    return rng_state.new_empty((rows, cols), dtype=torch.bool)


def fake_packed_mask(
    rng_state: Tensor, rows: int, cols: int, p: float, stream: int, digits: int
) -> Tensor:
    return rng_state.new_empty((rows, (cols + 31) // 32), dtype=torch.int32)


def fake_noise(
    rng_state: Tensor, size: Sequence[int], dtype: torch.dtype, first: int = 0
) -> Tensor:
    return rng_state.new_empty(size, dtype=dtype)


OPERATORS = (
    Constant("mask", fake_mask),
    Constant("packed_mask", fake_packed_mask),
    Constant("uniform_noise", fake_noise),
    Constant("normal_noise", fake_noise),
)
