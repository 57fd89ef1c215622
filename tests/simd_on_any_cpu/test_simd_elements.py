"""Element-wise kernels of every instruction set: dropout, the transformer epilogue, DropBlock."""

from __future__ import annotations

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
from simd_on_any_cpu.kernels import OUT, Affine, Kernels, Random, filled

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
        map = Affine(scale, shift, fill)
        known = (dtype, Random(SEED, OFFSET, p), map, x, residual, OUT, count, 3)
        drawn = filled((count,), dtype, kernels.dropout_draw_and_apply, *known)
        expected = mapped(x, kept, scale, fill, residual, shift)
        assert_rounded_once(drawn, expected, bool(shift))
        bits = words_of(kept)
        applied = filled(
            (count,), dtype, kernels.dropout_apply, dtype, map, x, residual, OUT, count, bits
        )
        assert_same_bits(applied, drawn, "bits that were drawn before")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kept", [True, False])
def test_runs_that_are_alike(kernels: Kernels, kept: bool, dtype: torch.dtype) -> None:
    for count in COUNTS:
        x, r = random_tensors((count,), (count,), dtype=dtype, seed=count)
        for residual in (None, r):
            known = (dtype, Affine(1.5, 0.0, 0.0), x, residual, OUT, count, kept)
            ours = filled((count,), dtype, kernels.dropout_apply_alike, *known)
            expected = mapped(x, torch.tensor(kept), 1.5, 0.0, residual)
            assert_same_bits(ours, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "cols"), [(1, 16), (5, 17), (33, 31), (70, 100)])
def test_columns_of_bits(kernels: Kernels, rows: int, cols: int, dtype: torch.dtype) -> None:
    """Element (r, c) has bit first_bits[c] + r: columns in reverse order, with gaps."""
    x, residual = random_tensors((rows, cols), (rows, cols), dtype=dtype)
    bits = kept_elements(3 + cols * (rows + 2), 0.4)
    kept = bits[3:].view(cols, rows + 2)[:, :rows].T.flip(1)
    first_bits = 3 + (rows + 2) * torch.arange(cols).flip(0)
    tile = (rows, cols, cols, first_bits, words_of(bits))
    known = (dtype, Affine(2.0, 0.0, 0.0), x, residual, OUT, *tile)
    ours = filled((rows, cols), dtype, kernels.dropout_apply_columns, *known)
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
        known = (dtype, Affine(scale, 0.0, 0.0), x, None, OUT, x.numel(), True)
        ours = filled((x.numel(),), dtype, kernels.dropout_apply_alike, *known)
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
    scale = 1 / reference.keep_rate(p)
    kind = ACTIVATIONS.index(activation)
    known = (dtype, Random(SEED, OFFSET, p), scale, kind, features)
    forward = (*known, x, bias, residual, OUT, count, 0)
    output = filled((rows, features), dtype, kernels.bias_act_dropout_add_forward, *forward)
    sums = torch.zeros(features, dtype=computing_type(dtype))
    before = None if activation == "none" else x
    backward = (*known, grad, before, bias, OUT, sums, count, 0)
    d_input = filled((rows, features), dtype, kernels.bias_act_dropout_add_backward, *backward)
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
    gamma = 0.02
    kept = reference.block_mask((maps, 1, *size), block, gamma, SEED, OFFSET).flatten()
    words = -(-kept.numel() // 64)
    known = (Random(SEED, OFFSET, gamma), maps, torch.tensor(size), torch.tensor(block), OUT)
    bits = filled((words,), torch.int64, kernels.drop_block_mask, *known)
    expected = np.zeros(64 * words, bool)
    expected[: kept.numel()] = kept.numpy()
    unpacked = np.unpackbits(bits.numpy().view(np.uint8), bitorder="little")
    assert np.array_equal(unpacked, expected)
    for first, last in ((0, kept.numel()), (1, kept.numel()), (0, kept.numel() // 2)):
        counted = kernels.drop_block_count_bits(bits, first, last - first)
        assert counted == expected[first:last].sum()
