"""The CUDA mask kernels, run on the CPU: their bits are the contract's, wherever they are put."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_on_cpu import runner
from cuda_on_cpu.runner import Misaligned, Worker
from support.golden import GoldenMask, golden_masks
from support.kernel_memory import bytes_of, check_end, poisoned_array

import fused_dropout
from fused_dropout import reference

MANY_BLOCKS = 1 << 14
SEED, OFFSET, STREAM = 2**63 + 12345, 2**40 + 7, 3


def state(seed: int = SEED, offset: int = OFFSET) -> np.ndarray:
    """An rng_state tensor."""
    numbers = np.array([seed, offset], np.uint64)
    numbers.flags.writeable = False
    return numbers


def result_in(out: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What stands in poisoned memory, after a look at the spare part."""
    size = int(np.prod(shape))
    check_end(out, size)
    return out[:size].reshape(shape)


def packed(
    device: Worker,
    shape: tuple[int, int],
    p: float,
    rng_state: np.ndarray,
    stream: int = 0,
    digits: int = 16,
    *,
    first: int = 0,
    max_blocks: int = MANY_BLOCKS,
) -> np.ndarray:
    """The mask's words as the CUDA kernel packs them."""
    words = -(-shape[1] // 32)
    out = poisoned_array(device, shape[0] * words, np.uint32)
    arguments = (rng_state, stream, p, digits, first, *shape, out, max_blocks)
    assert device.call("draw_packed", *arguments) == 0
    return result_in(out, (shape[0], words))


def as_bytes(
    device: Worker,
    shape: tuple[int, int],
    p: float,
    rng_state: np.ndarray,
    stream: int = 0,
    digits: int = 16,
    *,
    first: int = 0,
    max_blocks: int = MANY_BLOCKS,
    misaligned: int = 0,
) -> np.ndarray:
    """The mask's bytes as the CUDA kernel writes them."""
    out = poisoned_array(device, shape[0] * shape[1], np.uint8)
    where = Misaligned(out, misaligned)
    arguments = (rng_state, stream, p, digits, first, *shape, where, max_blocks)
    assert device.call("draw_bytes", *arguments) == 0
    return result_in(out, shape)


def groups(
    device: Worker, p: float, first: int, stride: int, count: int, max_blocks: int = MANY_BLOCKS
) -> np.ndarray:
    """Groups first, first + stride, ... as the CUDA kernel draws them."""
    out = poisoned_array(device, 4 * count, np.uint32)
    arguments = (state(), STREAM, p, 16, first, stride, count, out, max_blocks)
    assert device.call("draw_groups", *arguments) == 0
    return result_in(out, (count, 4))


def expected_groups(p: float, first: int, stride: int, count: int) -> np.ndarray:
    """The same from the readable reference."""
    numbers = (np.uint64(first) + np.uint64(stride) * np.arange(count, dtype=np.uint64)).astype(
        np.uint64
    )
    fraction = np.zeros((count, 128), np.uint64)
    for s in range(16):
        fraction = 2 * fraction + reference.fraction_digit(s, numbers, SEED, OFFSET, STREAM)
    kept = fraction < reference.threshold(p)
    return np.packbits(kept, axis=1, bitorder="little").view("<u4")


def on_cpu(
    shape: tuple[int, int], p: float, seed: int, offset: int, stream: int, digits: int
) -> np.ndarray:
    """The words that the CPU kernels draw."""
    mask = fused_dropout.packed_mask(
        shape, p, seed=seed, offset=offset, stream=stream, digits=digits
    )
    return mask.numpy()


@pytest.mark.parametrize("golden", golden_masks(), ids=str)
def test_golden_masks(device: Worker, golden: GoldenMask) -> None:
    shape = (golden.rows, golden.cols)
    rng_state = state(golden.seed, golden.offset)
    words = packed(device, shape, golden.p, rng_state, golden.stream, golden.digits)
    assert words.tolist() == golden.words
    mask = as_bytes(device, shape, golden.p, rng_state, golden.stream, golden.digits)
    assert np.array_equal(mask, bytes_of(words, golden.cols))


EDGES = (1, 15, 16, 17, 31, 32, 33, 112, 127, 128, 129, 144, 255, 256, 257, 4095, 4096, 4097)


@pytest.mark.parametrize("p", [0.5, 0.3])
@pytest.mark.parametrize("cols", EDGES)
def test_same_bits_as_the_cpu(device: Worker, cols: int, p: float) -> None:
    rule = (STREAM, 16)
    for rows in (1, 5):
        expected = on_cpu((rows, cols), p, SEED, OFFSET, *rule)
        assert np.array_equal(packed(device, (rows, cols), p, state(), *rule), expected)
        mask = as_bytes(device, (rows, cols), p, state(), *rule)
        assert np.array_equal(mask, bytes_of(expected, cols))


@pytest.mark.parametrize("digits", [1, 2, 8, 16, 31, 32])
@pytest.mark.parametrize("p", [0.0, 1e-9, 0.25, 0.5, 0.7, 0.999, 1.0])
def test_rates_and_digits(device: Worker, p: float, digits: int) -> None:
    shape = (3, 200)
    expected = on_cpu(shape, p, 1, 2, 1, digits)
    assert np.array_equal(packed(device, shape, p, state(1, 2), 1, digits), expected)
    mask = as_bytes(device, shape, p, state(1, 2), 1, digits)
    assert np.array_equal(mask, bytes_of(expected, shape[1]))
    if p in (0.0, 1.0):
        assert (mask == 1 - p).all()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (0, 128)])
def test_empty_masks_launch_nothing(device: Worker, shape: tuple[int, int]) -> None:
    before = runner.launches[device.mode]
    packed(device, shape, 0.5, state())
    as_bytes(device, shape, 0.5, state())
    groups(device, 0.5, 0, 1, 0)
    assert runner.launches[device.mode] == before


@pytest.mark.parametrize("count", [1, 31, 257])
@pytest.mark.parametrize("stride", [1, 7, 2**33 + 1])
@pytest.mark.parametrize("first", [0, 2**32 - 4, 2**47])
def test_groups_past_32_bits(device: Worker, first: int, stride: int, count: int) -> None:
    drawn = groups(device, 0.5, first, stride, count)
    assert np.array_equal(drawn, expected_groups(0.5, first, stride, count))


@pytest.mark.parametrize("cols", [40, 256])
@pytest.mark.parametrize("first", [2**32 - 5, 2**40 + 1])
def test_matrices_past_32_bits(device: Worker, first: int, cols: int) -> None:
    shape, rule = (6, cols), (STREAM, 16)
    per_row = -(-cols // 128)
    words = expected_groups(0.3, first, 1, shape[0] * per_row).reshape(shape[0], -1)
    expected = bytes_of(words, cols)
    drawn = packed(device, shape, 0.3, state(), *rule, first=first)
    assert np.array_equal(bytes_of(drawn, cols), expected)
    assert np.array_equal(as_bytes(device, shape, 0.3, state(), *rule, first=first), expected)


@pytest.mark.parametrize("cols", [1, 128, 1000, 2**33 + 1, 2**40])
@pytest.mark.parametrize("group", [0, 1, 2**31 + 5, 2**32 - 1, 2**32, 2**40 + 3])
def test_places_in_huge_matrices(device: Worker, group: int, cols: int) -> None:
    out = np.zeros(3, np.int64)
    assert device.call("place", group, cols, out) == 0
    row, number = divmod(group, -(-cols // 128))
    assert out.tolist() == [row, 128 * number, min(128, cols - 128 * number)]


@pytest.mark.parametrize("max_blocks", [1, 3])
@pytest.mark.parametrize("shape", [(1, 128 * 800), (800, 100), (1601, 16), (257, 130)])
def test_more_groups_than_threads(device: Worker, shape: tuple[int, int], max_blocks: int) -> None:
    rule = (STREAM, 16)
    expected = on_cpu(shape, 0.5, SEED, OFFSET, *rule)
    drawn = packed(device, shape, 0.5, state(), *rule, max_blocks=max_blocks)
    assert np.array_equal(drawn, expected)
    mask = as_bytes(device, shape, 0.5, state(), *rule, max_blocks=max_blocks)
    assert np.array_equal(mask, bytes_of(expected, shape[1]))


@pytest.mark.parametrize(("halves", "threshold"), [(1, 0), (3, 2), (5, 2), (7, 4)])
def test_ties_of_the_threshold_go_to_even(device: Worker, halves: int, threshold: int) -> None:
    """At (1 - p) 2^3 = 0.5, 1.5, 2.5 and 3.5."""
    shape, rule = (1, 1000), (STREAM, 3)
    drawn = packed(device, shape, 1 - halves / 2**4, state(), *rule)
    assert np.array_equal(drawn, packed(device, shape, 1 - threshold / 2**3, state(), *rule))
    keys = {"seed": SEED, "offset": OFFSET, "stream": STREAM, "digits": 3}
    kept = reference.mask(shape, 1 - halves / 2**4, **keys)
    assert np.array_equal(bytes_of(drawn, 1000), kept.numpy())
    assert abs(kept.double().mean().item() - threshold / 2**3) < 0.06  # T would be 1/8 apart


@pytest.mark.parametrize("misaligned", [1, 8, 15, 16])
def test_misaligned_bytes(device: Worker, misaligned: int) -> None:
    shape, rule = (3, 160), (STREAM, 16)
    mask = as_bytes(device, shape, 0.5, state(), *rule, misaligned=misaligned)
    assert np.array_equal(mask, bytes_of(on_cpu(shape, 0.5, SEED, OFFSET, *rule), shape[1]))


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_seed_and_offset_by_value(device: Worker, p: float) -> None:
    by_value = np.zeros(4, np.uint32)
    assert device.call("draw_by_value", SEED, OFFSET, p, by_value) == 0
    assert np.array_equal(by_value, on_cpu((1, 128), p, SEED, OFFSET, 0, 16)[0])


@pytest.mark.parametrize("count", [1, 33, 128, 129, 1024, 1500])
@pytest.mark.parametrize(
    ("p", "digits"), [(0.5, 16), (0.3, 9), (0.3, 10), (0.3, 11), (0.1, 16), (1e-4, 32), (0.9, 17)]
)
@pytest.mark.parametrize("first", [0, 2**32 - 100])
def test_many_groups_by_a_warp(
    device: Worker, first: int, p: float, digits: int, count: int
) -> None:
    """Groups that are open after 8 digits go from lane to lane."""
    out = poisoned_array(device, 4 * count, np.uint32)
    assert device.call("draw_many_groups", state(), p, digits, first, count, out) == 0
    expected = on_cpu((first + count, 1), p, SEED, OFFSET, 0, digits) if first == 0 else None
    drawn = result_in(out, (count, 4))
    alone = poisoned_array(device, 4 * count, np.uint32)
    rule = (state(), 0, p, digits, first, 1, count, alone, MANY_BLOCKS)
    assert device.call("draw_groups", *rule) == 0
    assert np.array_equal(drawn, result_in(alone, (count, 4)))
    if expected is not None:
        assert np.array_equal(drawn[:, 0] & 1, expected[:, 0] & 1)
