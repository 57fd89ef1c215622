"""Operands of bias_act_dropout_add."""

from __future__ import annotations

import torch
from torch import Tensor

from support.tensors import random_tensors


def random_operands(
    shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, ...]:
    """input, bias, residual, grad_output: the same numbers on every device."""
    return random_tensors(shape, shape[-1:], shape, shape, dtype=dtype, seed=seed)
