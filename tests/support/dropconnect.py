"""Operands of DropConnect layers."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import fused_dropout
from fused_dropout import reference
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


def masks_from(
    first: int, masks: int, outs: int, ins: int, p: float, seed: int, offset: int = 0
) -> np.ndarray:
    """Masks ``first`` and on, from the readable reference: [groups, masks, outs, 4 words]."""
    row_groups = -(-ins // 128)
    rows = np.arange(masks * outs, dtype=np.uint64) + np.uint64(first * outs)
    numbers = rows * np.uint64(row_groups) + np.arange(row_groups, dtype=np.uint64)[:, None]
    fraction = np.zeros((*numbers.shape, 128), np.uint64)
    for s in range(16):
        digit = reference.fraction_digit(s, numbers, seed % 2**64, offset % 2**64, 0)
        fraction = 2 * fraction + digit
    kept = fraction < reference.threshold(p)
    words = np.packbits(kept, axis=-1, bitorder="little").view("<u4")
    return words.reshape(row_groups, masks, outs, 4)


class KernelLayer(NamedTuple):
    """A layer on a [rows, in_features] input, as the entries of tests/cuda_on_cpu take it."""

    rows: int
    in_features: int
    out_features: int
    rows_per_mask: int
    p: float
    cut: int  # blocks to aim at, or masked weights that are made at a time
    step: int = 1  # from an operand's element to its neighbour

    @property
    def masks(self) -> int:
        return -(-self.rows // self.rows_per_mask)

    def sizes(self) -> np.ndarray:
        return np.array([*self[:4], self.cut, self.step], np.int64)

    def stored(self, seed: int) -> np.ndarray:
        return stored_masks(self.out_features, self.in_features, self.masks, self.p, seed)

    def bias_bits(self, seed: int) -> np.ndarray:
        """The masks of the bias in whole groups, as draw_groups lays them out."""
        outs = -(-self.out_features // 128) * 128
        mask = fused_dropout.packed_mask((self.masks, outs), self.p, seed=seed, stream=1)
        return mask.numpy().view(np.uint32)

    def scale(self) -> float:
        q = reference.keep_rate(self.p)
        return 1 / q if q > 0 else 0.0

    def known(self, seed: int, *, stored: bool) -> tuple[object, ...]:
        """What every product is called with: random state, sizes, p, scale and stored masks."""
        state = fused_dropout.make_rng_state(seed + stored)  # another one, if nothing is drawn
        bits = self.stored(seed) if stored else NO_MASK_BITS
        return state.numpy(), self.sizes(), self.p, self.scale(), bits
