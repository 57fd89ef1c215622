"""The CUDA kernels of masked weights, run on the CPU: the CPU kernels' masks, the same bits."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from cuda_on_cpu.runner import Worker
from support.accuracy import is_accurate
from support.kernel_memory import check_end, memory, name_of, poisoned
from support.tensors import DTYPES
from torch import Tensor

import fused_dropout
from fused_dropout import reference
from fused_dropout._core import extension

SEED = -77
NO_MASK_BITS = np.array([0xFFFFFFFF], np.uint32)


class Case(NamedTuple):
    """Weights [outs, ins] under some masks."""

    masks: int
    outs: int
    ins: int
    p: float
    gap: int = 1  # from an element to the next of its row

    def sizes(self, first_row: int = 0, rows: int | None = None) -> np.ndarray:
        row = self.ins * self.gap
        every = self.masks * self.outs if rows is None else rows
        strides = (self.outs * row, row, self.gap)
        return np.array([self.masks, self.outs, self.ins, *strides, first_row, every], np.int64)


# Edges of groups (128 columns), of a lane's 4 columns, of warps (32 groups) and of 32 masks.
CASES = (
    Case(1, 1, 1, 0.5),
    Case(1, 40, 300, 0.5),
    Case(1, 7, 129, 0.3),
    Case(3, 5, 128, 0.25),
    Case(33, 3, 260, 0.1),
    Case(65, 2, 6, 0.5),
    Case(2, 20, 132, 0.5),
    Case(2, 9, 140, 0.5, gap=3),
    Case(2, 4, 130, 1.0),
)


def laid_out(tensor: Tensor, case: Case) -> np.ndarray:
    """The operand as the case wants it, with NaNs in between."""
    if case.gap == 1:
        return memory(tensor)
    gaps = torch.full((tensor.numel(), case.gap), math.nan, dtype=tensor.dtype)
    gaps[:, 0] = tensor.flatten()
    return memory(gaps)


def stored_masks(case: Case) -> np.ndarray:
    """The masks as the CPU stores them."""
    state = fused_dropout.make_rng_state(SEED)
    weight = torch.empty(case.outs, case.ins)
    bits = extension.operators().dropconnect_mask_bits(weight, state, case.masks, case.p)
    return bits.numpy().view(np.uint32)


def scale_of(case: Case) -> float:
    q = reference.keep_rate(case.p)
    return 1 / q if q > 0 else 1.0


with_stored_bits = pytest.mark.parametrize("stored", [False, True], ids=["drawn", "stored"])


@with_stored_bits
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_masked_weights(device: Worker, case: Case, dtype: torch.dtype, stored: bool) -> None:
    """Bit for bit what the CPU's kernels give; infinities and NaNs where they are kept, only."""
    weight = torch.randn(case.outs, case.ins, generator=torch.Generator().manual_seed(1)).to(dtype)
    weight.view(-1)[::5] = math.inf
    weight.view(-1)[::7] = math.nan
    state = fused_dropout.make_rng_state(SEED)
    settings = (case.p, case.masks, scale_of(case))
    expected = extension.operators().mask_weight(weight, state, None, *settings)
    bits = stored_masks(case) if stored else NO_MASK_BITS
    # All rows of the bit matrix, and some that begin within a mask.
    every = case.masks * case.outs
    for first, rows in ((0, every), (every // 3, every - every // 3)):
        memory_, result = poisoned(device, rows, case.ins, dtype=dtype)
        done = device.call(
            f"mask_weight_{name_of(dtype)}", state.numpy(), case.sizes(first, rows), case.p,
            scale_of(case), bits, laid_out(weight, case), memory_,
        )  # fmt: skip
        assert done == 0
        check_end(memory_, result.numel())
        wanted = expected.view(every, case.ins)[first : first + rows]
        torch.testing.assert_close(result, wanted, rtol=0, atol=0, equal_nan=True)


@with_stored_bits
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_sum_over_masks(device: Worker, case: Case, dtype: torch.dtype, stored: bool) -> None:
    shape = (case.masks, case.outs, case.ins)
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    kept = reference.mask(shape, case.p, seed=SEED)
    truth = torch.where(kept, stack.double(), 0).sum(0) * scale_of(case)
    own = (torch.where(kept, stack, 0).sum(0) * scale_of(case)).to(dtype)
    spoilt = torch.where(kept, stack, math.nan)  # what is dropped is not looked at
    memory_, result = poisoned(device, case.outs, case.ins, dtype=dtype)
    done = device.call(
        f"mask_weight_sum_{name_of(dtype)}", fused_dropout.make_rng_state(SEED).numpy(),
        case.sizes(), case.p, scale_of(case), stored_masks(case) if stored else NO_MASK_BITS,
        laid_out(spoilt, case), memory_,
    )  # fmt: skip
    assert done == 0
    check_end(memory_, result.numel())
    assert is_accurate(result, own, truth)
