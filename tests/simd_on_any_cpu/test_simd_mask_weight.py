"""mask_weight's kernels of every instruction set: each mask on a matrix, sums, tests for NaN."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from support.tensors import DTYPES, assert_same_bits, computing_type, random_tensors
from torch import Tensor

from fused_dropout import reference
from simd_on_any_cpu.kernels import OUT, Kernels, Layer, Random, filled, matrix_of

SEED, OFFSET, MASKS = 5, 2**32 + 3, 35
SCALE = 1.25  # exact in every dtype, but its products are rounded
SHAPES = ((1, 1), (3, 127), (33, 128), (40, 1030))  # output features, columns


@functools.cache  # the reference takes a second, and every test of a shape asks
def kept_weights(p: float, outs: int, cols: int) -> Tensor:
    """[masks, outs, cols]"""
    kept = reference.mask((MASKS * outs, cols), p, seed=SEED, offset=OFFSET)
    return torch.as_tensor(kept).view(MASKS, outs, cols)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("outs", "cols"), SHAPES)
@pytest.mark.parametrize(("p", "stored"), [(0.5, False), (0.1, False), (0.1, True)])
def test_masks(
    kernels: Kernels, p: float, stored: bool, outs: int, cols: int, dtype: torch.dtype
) -> None:
    (weight,) = random_tensors((cols, outs), dtype=dtype, seed=1)
    weight = weight.T  # its columns are apart in memory
    weight[0, 0] = math.nan
    kept = kept_weights(p, outs, cols)
    random, layer = Random(SEED, OFFSET, p), Layer(MASKS, cols, outs, 1, SCALE)
    masks = None
    if stored:
        words = (kernels.dropconnect_mask_words(layer),)
        masks = filled(words, torch.int32, kernels.dropconnect_mask_bits, random, layer, OUT)
    real = computing_type(dtype)
    for mask in (0, 17, MASKS - 1):
        known = (dtype, random, layer, masks, matrix_of(weight), mask)
        wide = torch.where(kept[mask], SCALE * weight.to(real), torch.zeros((), dtype=real))
        ours = filled((outs, cols), dtype, kernels.mask_weight_apply, *known, OUT)
        assert_same_bits(ours, wide.to(dtype))
        ours = filled((outs, cols), real, kernels.mask_weight_apply_wide, *known, OUT)
        assert_same_bits(ours, wide)
        before = torch.ones(outs, cols, dtype=real)
        kernels.mask_weight_add(*known, before)
        exact = torch.where(kept[mask], 1 + SCALE * weight.double(), 1.0)
        torch.testing.assert_close(before, exact.to(real), equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("outs", "cols"), [*SHAPES, (64, 129), (300, 1200)])
@pytest.mark.parametrize("stored", [False, True])
def test_transposed_masks(
    kernels: Kernels, stored: bool, outs: int, cols: int, dtype: torch.dtype
) -> None:
    whole = -(-outs // 16) * 16  # rows end with whole vectors
    (weight,) = random_tensors((cols, whole), dtype=dtype, seed=1)
    weight[-1, -1] = weight[0, 0] = math.nan
    random, layer = Random(SEED, OFFSET, 0.5), Layer(MASKS, cols, outs, 1, SCALE)
    masks = None
    if stored:
        words = (kernels.dropconnect_mask_words(layer),)
        masks = filled(words, torch.int32, kernels.dropconnect_mask_bits, random, layer, OUT)
    real = computing_type(dtype)
    kept = kept_weights(0.5, outs, cols)
    for mask in (0, MASKS - 1):
        known = (dtype, random, layer, masks, weight, mask)
        ours = filled((cols, whole), dtype, kernels.mask_weight_apply_transposed, *known, OUT)
        scaled = SCALE * weight[:, :outs].to(real)
        expected = torch.where(kept[mask].T, scaled, torch.zeros((), dtype=real))
        assert_same_bits(ours[:, :outs], expected.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("outs", "cols"), SHAPES)
def test_sum_over_masks(kernels: Kernels, outs: int, cols: int, dtype: torch.dtype) -> None:
    (stack,) = random_tensors((MASKS, outs, cols), dtype=dtype, seed=2)
    kept = kept_weights(0.5, outs, cols)
    stack[~kept] = math.inf
    known = (dtype, Random(SEED, OFFSET, 0.5), Layer(MASKS, cols, outs, 1, SCALE), None, stack)
    ours = filled((outs, cols), dtype, kernels.mask_weight_sum, *known, OUT)
    terms = torch.where(kept, SCALE * stack.double(), 0.0)
    error = (ours.double() - terms.sum(0)).abs()
    eps = torch.finfo(dtype).eps, torch.finfo(computing_type(dtype)).eps
    assert (error <= eps[0] * terms.sum(0).abs() + MASKS * eps[1] * terms.abs().sum(0)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [1, 15, 16, 129, 1000])
def test_rows(kernels: Kernels, count: int, dtype: torch.dtype) -> None:
    real = computing_type(dtype)
    (out,) = random_tensors((count,), dtype=dtype, seed=3)
    (row,) = random_tensors((count,), dtype=real, seed=4)
    expected = (out.to(real) + row).to(dtype)
    kernels.mask_weight_add_row(dtype, row, count, out)
    assert_same_bits(out, expected)

    for stride in (1, 3):
        numbers = torch.full((stride * count + stride,), math.nan, dtype=dtype)
        elements = numbers[: stride * count : stride]
        elements.fill_(torch.finfo(dtype).max)
        assert kernels.mask_weight_all_finite(dtype, numbers, stride, count) == 1
        for place in {0, count // 2, count - 1}:
            for special in (math.inf, -math.inf, math.nan):
                elements[place] = special
                assert kernels.mask_weight_all_finite(dtype, numbers, stride, count) == 0
            elements[place] = 1.0
