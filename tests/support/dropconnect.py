"""Operands of DropConnect layers."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

import fused_dropout
from fused_dropout._core import extension
from support.kernel_memory import memory
from support.tensors import random_tensors

MODES = ("row", "example", "batch", 3)
NO_MASK_BITS = np.array([0xFFFFFFFF], np.uint32)  # what kernels called by hand take for None


def random_operands(
    shape: tuple[int, ...], out_features: int, dtype: torch.dtype, seed: int = 0
) -> tuple[Tensor, ...]:
    """input, weight, bias, grad_output: the same numbers on every device."""
    sizes = (shape, (out_features, shape[-1]), (out_features,), (*shape[:-1], out_features))
    return random_tensors(*sizes, dtype=dtype, seed=seed)


def spread(tensor: Tensor, step: int) -> np.ndarray:
    """The tensor's elements `step` apart, with NaNs in between."""
    gaps = torch.full((tensor.numel(), step), math.nan, dtype=tensor.dtype)
    gaps[:, 0] = tensor.flatten()
    return memory(gaps)


def stored_masks(outs: int, ins: int, masks: int, p: float, seed: int) -> np.ndarray:
    """The masks as the CPU stores them, which the CUDA kernels read too."""
    state = fused_dropout.make_rng_state(seed)
    bits = extension.operators().dropconnect_mask_bits(torch.empty(outs, ins), state, masks, p)
    return bits.numpy().view(np.uint32)
