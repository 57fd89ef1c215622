"""Mask bits of every instruction set against the golden file and the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.golden import GoldenMask, golden_masks

from fused_dropout import reference
from simd_on_any_cpu.kernels import OUT, Kernels, Random, filled


def drawn_groups(
    kernels: Kernels, random: Random, stream: int, digits: int, first: int, stride: int, count: int
) -> np.ndarray:
    """The groups' words."""
    arguments = (random, stream, digits, first, stride, count, OUT)
    drawn = filled((count, 4), torch.int32, kernels.mask_draw_groups, *arguments)
    return drawn.numpy().view(np.uint32)


@pytest.mark.parametrize("golden", golden_masks(), ids=str)
def test_golden_groups(kernels: Kernels, golden: GoldenMask) -> None:
    random = Random(golden.seed, golden.offset, golden.p)
    groups = -(-golden.cols // 128)
    words = drawn_groups(
        kernels, random, golden.stream, golden.digits, 0, 1, golden.rows * groups
    ).reshape(golden.rows, -1)[:, : -(-golden.cols // 32)]
    if golden.cols % 32:
        words[:, -1] &= (1 << golden.cols % 32) - 1
    assert words.tolist() == golden.words


@pytest.mark.parametrize("golden", golden_masks(), ids=str)
def test_golden_bytes(kernels: Kernels, golden: GoldenMask) -> None:
    random = Random(golden.seed, golden.offset, golden.p)
    shape = (golden.rows, golden.cols)
    arguments = (random, golden.stream, golden.digits, 0, *shape, OUT)
    drawn = filled(shape, torch.uint8, kernels.mask_draw_bytes, *arguments).numpy()
    words = np.array(golden.words, dtype="<u4")
    bits = np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
    assert np.array_equal(drawn, bits[:, : golden.cols])


@pytest.mark.parametrize("digits", [1, 4, 16, 32])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 33, 100])
def test_any_number_of_groups(kernels: Kernels, count: int, digits: int) -> None:
    """Odd thresholds: all digits decide."""
    p = (2 ** (digits - 1) | 1) / 2**digits if digits > 1 else 0.5
    first, stride = 2**32 - 5, 3
    words = drawn_groups(kernels, Random(11, 3, p), 1, digits, first, stride, count)
    groups = (first + stride * np.arange(count)).astype(np.uint64)
    fraction = np.zeros((count, 128), dtype=np.uint64)
    for s in range(digits):
        fraction = 2 * fraction + reference.fraction_digit(s, groups, 11, 3, 1)
    kept = fraction < reference.threshold(p, digits)
    expected = np.packbits(kept, axis=1, bitorder="little").view("<u4").reshape(count, 4)
    assert np.array_equal(words, expected)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_nothing_random(kernels: Kernels, p: float) -> None:
    words = drawn_groups(kernels, Random(1, 2, p), 0, 16, 5, 1, 19)
    assert (words == (0 if p == 1 else 0xFFFFFFFF)).all()
