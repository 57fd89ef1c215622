"""dropconnect_moments's kernels of every instruction set: squares, sums, bias and scales."""

from __future__ import annotations

import math

import pytest
import torch
from support.accuracy import is_accurate
from support.tensors import DTYPES, assert_same_bits, computing_type, random_tensors
from torch import Tensor

from simd_on_any_cpu.kernels import OUT, Kernels, Layer, filled, matrix_of

SCALE = 0.75
# Rows, output features, columns: tiles and their rests, a panel of 512 columns and more.
SHAPES = ((1, 5, 1), (1, 7, 512), (2, 2, 16), (3, 9, 513), (5, 4, 1030), (8, 3, 0))


def padded(cols: int) -> int:
    return -(-max(cols, 1) // 16) * 16


def squared(kernels: Kernels, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix and its squares as the kernels take them."""
    rows, cols = matrix.shape
    shape, real = (rows, padded(cols)), computing_type(matrix.dtype)
    wide = torch.full(shape, math.nan, dtype=real)
    known = (matrix.dtype, matrix_of(matrix), rows, cols)
    squares = filled(shape, real, kernels.dropconnect_moments_square, *known, wide, OUT, shape[1])
    return wide, squares


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_squares(kernels: Kernels, transposed: bool, dtype: torch.dtype) -> None:
    (matrix,) = random_tensors((37, 5) if transposed else (5, 37), dtype=dtype, seed=1)
    matrix = matrix.T if transposed else matrix
    wide, squares = squared(kernels, matrix)
    expected = torch.nn.functional.pad(matrix.to(wide.dtype), (0, 48 - 37))
    assert_same_bits(wide, expected)
    assert_same_bits(squares, expected.square())
    known = (dtype, matrix_of(matrix), 5, 37, None, OUT, 48)
    alone = filled((5, 48), wide.dtype, kernels.dropconnect_moments_square, *known)
    assert_same_bits(alone, squares)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "outs", "ins"), SHAPES)
@pytest.mark.parametrize("mask_bias", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_moments(
    kernels: Kernels,
    transposed: bool,
    mask_bias: bool,
    rows: int,
    outs: int,
    ins: int,
    dtype: torch.dtype,
) -> None:
    input, bias = random_tensors((rows, ins), (outs,), dtype=dtype, seed=2)
    (weight,) = random_tensors((ins, outs) if transposed else (outs, ins), dtype=dtype, seed=3)
    weight = weight.T if transposed else weight
    wide, squares = squared(kernels, input)
    real = wide.dtype
    layer = Layer(rows, ins, outs, 1, SCALE)
    variance = torch.full((rows, outs), math.nan, dtype=real)
    known = (dtype, layer, int(mask_bias), wide, squares, wide.shape[1], matrix_of(weight), bias)
    mean = filled((rows, outs), real, kernels.dropconnect_moments_apply, *known, OUT, variance)
    for ours, power in ((mean, 1), (variance, 2)):
        own, truth = (
            expected(input.to(it), weight.to(it), bias.to(it), power, mask_bias)
            for it in (real, torch.float64)
        )
        assert is_accurate(ours, own, truth, ulps=4)

    # The same from sums of products.
    sums = (wide[:, :ins] @ weight.to(real).T, squares[:, :ins] @ weight.to(real).square().T)
    finished = (dtype, layer, int(mask_bias), bias, *sums)
    kernels.dropconnect_moments_finish(*finished)
    torch.testing.assert_close(sums[0], mean, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(sums[1], variance, rtol=1e-5, atol=1e-4)


def expected(input: Tensor, weight: Tensor, bias: Tensor, power: int, mask_bias: bool) -> Tensor:
    sums = input.pow(power) @ weight.pow(power).T
    if mask_bias:
        return SCALE**power * (sums + bias.pow(power))
    return SCALE**power * sums + (bias if power == 1 else 0)


def test_a_scale_of_0_makes_zeros(kernels: Kernels) -> None:
    input, weight = torch.full((2, 3), math.inf), torch.ones(4, 3)
    wide, squares = squared(kernels, input)
    mean, variance = torch.ones(2, 4), torch.ones(2, 4)
    layer, bias = Layer(2, 3, 4, 1, 0.0), torch.ones(4)
    sizes = (wide, squares, wide.shape[1], matrix_of(weight), bias)
    kernels.dropconnect_moments_apply(torch.float32, layer, 1, *sizes, mean, variance)
    assert not mean.any() and not variance.any()
