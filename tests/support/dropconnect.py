"""Operands of DropConnect layers."""

from __future__ import annotations

import torch
from torch import Tensor

from support.tensors import random_tensors

MODES = ("row", "example", "batch", 3)


def random_operands(
    shape: tuple[int, ...], out_features: int, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, ...]:
    """input, weight, bias, grad_output: the same numbers on every device."""
    sizes = (shape, (out_features, shape[-1]), (out_features,), (*shape[:-1], out_features))
    return random_tensors(*sizes, dtype=dtype, seed=seed)
