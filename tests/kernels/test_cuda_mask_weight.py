"""The CUDA kernels of masked weights, run on the CPU: the CPU kernels' masks, the same bits."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from cuda_on_cpu.runner import Worker
from support.accuracy import is_accurate
from support.dropconnect import NO_MASK_BITS, spread, stored_masks
from support.kernel_memory import check_end, name_of, poisoned
from support.tensors import DTYPES

import fused_dropout
from fused_dropout import reference
from fused_dropout._core import extension

SEED = -77


class Case(NamedTuple):
    """Weights [outs, ins] under some masks."""

    masks: int
    outs: int
    ins: int
    p: float
    gap: int = 1  # from an element to the next of its row

    @property
    def groups(self) -> int:
        return -(-self.ins // 128)

    def sizes(self, rows: range = range(0), groups: range = range(0)) -> np.ndarray:
        """With some rows of the bit matrix, and groups of their columns."""
        row = self.ins * self.gap
        strides = (self.outs * row, row, self.gap)
        part = (rows.start, len(rows), groups.start, len(groups))
        return np.array([self.masks, self.outs, self.ins, *strides, *part], np.int64)

    def stored(self) -> np.ndarray:
        return stored_masks(self.outs, self.ins, self.masks, self.p, SEED)


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
    bits = case.stored() if stored else NO_MASK_BITS
    drawn_from = fused_dropout.make_rng_state(SEED + stored)  # another state, if nothing is drawn
    # The whole bit matrix, and parts that begin within a mask or with another group.
    every = case.masks * case.outs
    all_groups = range(case.groups)
    parts = [(range(every), all_groups), (range(every // 3, every), all_groups)]
    if case.groups > 1:
        parts += [(range(every), all_groups[1:]), (range(every), all_groups[:1])]
    for rows, groups in parts:
        columns = slice(groups.start * 128, min(case.ins, groups.stop * 128))
        wanted = expected.view(every, case.ins)[rows.start : rows.stop, columns]
        memory_, result = poisoned(device, *wanted.shape, dtype=dtype)
        done = device.call(
            f"mask_weight_{name_of(dtype)}", drawn_from.numpy(), case.sizes(rows, groups), case.p,
            scale_of(case), bits, spread(weight, case.gap), memory_,
        )  # fmt: skip
        assert done == 0
        check_end(memory_, result.numel())
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
    drawn_from = fused_dropout.make_rng_state(SEED + stored)  # another state, if nothing is drawn
    done = device.call(
        f"mask_weight_sum_{name_of(dtype)}", drawn_from.numpy(),
        case.sizes(), case.p, scale_of(case), case.stored() if stored else NO_MASK_BITS,
        spread(spoilt, case.gap), memory_,
    )  # fmt: skip
    assert done == 0
    check_end(memory_, result.numel())
    assert is_accurate(result, own, truth)
