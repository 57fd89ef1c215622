"""Results of the mask operators."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_dropout._fake.common import Fakes


def _mask(rng_state: Tensor, rows: int, cols: int, p: float, stream: int, digits: int) -> Tensor:
    return rng_state.new_empty((rows, cols), dtype=torch.bool)


def _packed_mask(
    rng_state: Tensor, rows: int, cols: int, p: float, stream: int, digits: int
) -> Tensor:
    return rng_state.new_empty((rows, (cols + 31) // 32), dtype=torch.int32)


FAKES: Fakes = {"mask": _mask, "packed_mask": _packed_mask}
