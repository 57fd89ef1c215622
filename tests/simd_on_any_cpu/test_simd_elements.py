"""Element-wise kernels of every instruction set: dropout, the transformer epilogue, DropBlock."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest
import torch
from support.accuracy import is_accurate
from support.bias_act_dropout_add import random_operands
from support.dropout_kernels import mapped, packed
from support.tensors import (
    DTYPES,
    assert_same_bits,
    computing_type,
    random_tensors,
    with_gradients,
)
from torch import Tensor

from fused_dropout import reference
from simd_on_any_cpu.kernels import Affine, Kernels, Random, filled

SEED, OFFSET = -5, 12
COUNTS = (1, 15, 16, 17, 127, 128, 129, 1000, 5000)  # edges of lanes, groups and drawn batches
ACTIVATIONS = list(reference.ACTIVATIONS)  # in the order of the kernels' enum


def kept_elements(count: int, p: float, first_group: int = 0) -> Tensor:
    drawn = reference.mask(128 * first_group + count, p, seed=SEED, offset=OFFSET)
    return drawn[128 * first_group :]


def words_of(kept: Tensor) -> Tensor:
    """Packed, with the spare words that kernels may read."""
    words = np.append(packed(kept), np.full(4, 0xFFFFFFFF, np.uint32))
    return torch.from_numpy(words.view(np.int32))


def assert_rounded_once(actual: Tensor, expected: Tensor, shifted: bool) -> None:
    """The same bits, but where a sum may have been rounded with its product or after it."""
    if shifted:
        assert relative(actual, expected) <= 2 * torch.finfo(actual.dtype).eps
    else:
        assert_same_bits(actual, expected)


def relative(actual: Tensor, expected: Tensor) -> float:
    a, b = actual.double(), expected.double()
    return float(((a - b).abs() / b.abs().clamp_min(0.5)).max())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", COUNTS)
def test_dropout_draws_and_applies(kernels: Kernels, count: int, dtype: torch.dtype) -> None:
    x, r = random_tensors((count,), (count,), dtype=dtype, seed=count)
    for p, shift, residual in ((0.5, 0.0, None), (0.1, 0.25, None), (0.3, 0.0, r)):
        scale = 1 / reference.keep_rate(p)
        fill = 0.75 if shift else 0.0
        kept = kept_elements(count, p, first_group=3)
        run = (dtype, Random(SEED, OFFSET, p), Affine(scale, shift, fill), x, residual)
        drawn = filled(
            (count,),
            dtype,
            lambda out, run=run: kernels.dropout_draw_and_apply(*run, out, count, 3),
        )
        expected = mapped(x, kept, scale, fill, residual, shift)
        assert_rounded_once(drawn, expected, bool(shift))
        bits = words_of(kept)
        run = (dtype, Affine(scale, shift, fill), x, residual)
        applied = filled(
            (count,), dtype, lambda out, r=run, b=bits: kernels.dropout_apply(*r, out, count, b)
        )
        assert_same_bits(applied, drawn, "bits that were drawn before")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kept", [True, False])
def test_runs_that_are_alike(kernels: Kernels, kept: bool, dtype: torch.dtype) -> None:
    for count in COUNTS:
        x, r = random_tensors((count,), (count,), dtype=dtype, seed=count)
        for residual in (None, r):
            run = (dtype, Affine(1.5, 0.0, 0.0), x, residual)
            ours = filled(
                (count,),
                dtype,
                lambda out, run=run, n=count: kernels.dropout_apply_alike(*run, out, n, kept),
            )
            expected = mapped(x, torch.tensor(kept), 1.5, 0.0, residual)
            assert_same_bits(ours, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "cols"), [(1, 16), (5, 17), (33, 31), (70, 100)])
def test_columns_of_bits(kernels: Kernels, rows: int, cols: int, dtype: torch.dtype) -> None:
    """A transposed mask: element (r, c) has bit 3 + c * (rows + 2) + r."""
    x, residual = random_tensors((rows, cols), (rows, cols), dtype=dtype)
    bits = kept_elements(3 + cols * (rows + 2), 0.4)
    kept = bits[3:].view(cols, rows + 2)[:, :rows].T
    run = (dtype, Affine(2.0, 0.0, 0.0), x, residual)
    tile = (rows, cols, cols, 3, rows + 2, words_of(bits))
    ours = filled((rows, cols), dtype, lambda out: kernels.dropout_apply_columns(*run, out, *tile))
    assert_same_bits(ours, mapped(x, kept, 2.0, 0.0, residual))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_rounding(kernels: Kernels, dtype: torch.dtype) -> None:
    """Halves, ties, subnormals, infinities and NaNs, as torch rounds them."""
    generator = np.random.default_rng(1)
    bits = generator.integers(0, 2**32, 20_000, dtype=np.uint32)
    x = torch.from_numpy(bits.view(np.float32)).to(dtype)
    ties = torch.tensor([1 + 2.0**-8, 1 + 3 * 2.0**-8, 1 + 2.0**-11, 65519, 65520, 2.0**-25, 1e-45])
    x[:14] = torch.cat([ties, -ties]).to(dtype)
    x[14:17] = torch.tensor([math.inf, -math.inf, math.nan])
    for scale in (1.0, 1 + 2.0**-9, 2.0**-12, 3.0):
        run = (dtype, Affine(scale, 0.0, 0.0), x, None)
        ours = filled(
            (x.numel(),),
            dtype,
            lambda out, run=run: kernels.dropout_apply_alike(*run, out, x.numel(), True),
        )
        expected = (x.to(computing_type(dtype)) * scale).to(dtype)
        assert_same_bits(ours, expected, scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("rows", "features"), [(1, 128), (7, 129), (3, 300), (20, 200)])
def test_bias_act_dropout_add(
    kernels: Kernels, rows: int, features: int, activation: str, dtype: torch.dtype
) -> None:
    p, count = 0.1, rows * features
    operands = random_operands((rows, features), dtype)
    x, bias, residual, grad = operands
    settings = {"p": p, "activation": activation, "seed": SEED, "offset": OFFSET}
    known = (dtype, Random(SEED, OFFSET, p), 1 / reference.keep_rate(p))
    known = (*known, ACTIVATIONS.index(activation), features)
    output = filled(
        (rows, features),
        dtype,
        lambda out: kernels.bias_act_dropout_add_forward(*known, x, bias, residual, out, count, 0),
    )
    sums = torch.zeros(features, dtype=computing_type(dtype))
    before = None if activation == "none" else x
    d_input = filled(
        (rows, features),
        dtype,
        lambda out: kernels.bias_act_dropout_add_backward(
            *known, grad, before, bias, out, sums, count, 0
        ),
    )
    own = with_gradients(reference.bias_act_dropout_add, operands, **settings)
    wide = tuple(tensor.double() for tensor in operands)
    truth = with_gradients(reference.bias_act_dropout_add, wide, **settings)
    ours = (output, d_input, sums.to(dtype))
    for name, a, b, t in zip(("output", "d_input", "d_bias"), ours, own, truth, strict=False):
        assert is_accurate(a, b, t, ulps=4), name


@pytest.mark.parametrize(
    ("maps", "size", "block"),
    [
        (1, (1, 1, 1), (1, 1, 1)),
        (7, (1, 1, 50), (1, 1, 7)),
        (5, (1, 9, 13), (1, 3, 4)),
        (3, (6, 7, 70), (2, 3, 66)),
        (2, (1, 33, 64), (1, 33, 5)),
    ],
)
def test_drop_block(
    kernels: Kernels, maps: int, size: tuple[int, ...], block: tuple[int, ...]
) -> None:
    gamma, triple = 0.02, ctypes.c_int64 * 3
    kept = reference.block_mask((maps, 1, *size), block, gamma, SEED, OFFSET).flatten()
    words = -(-kept.numel() // 64)
    sizes = [torch.tensor(numbers) for numbers in (size, block)]
    assert all(tensor.numel() * 8 == ctypes.sizeof(triple) for tensor in sizes)
    bits = filled(
        (words,),
        torch.int64,
        lambda out: kernels.drop_block_mask(Random(SEED, OFFSET, gamma), maps, *sizes, out),
    )
    expected = np.zeros(64 * words, bool)
    expected[: kept.numel()] = kept.numpy()
    unpacked = np.unpackbits(bits.numpy().view(np.uint8), bitorder="little")
    assert np.array_equal(unpacked, expected)
    for first, last in ((0, kept.numel()), (1, kept.numel()), (0, kept.numel() // 2)):
        counted = kernels.drop_block_count_bits(bits, first, last - first)
        assert counted == expected[first:last].sum()
