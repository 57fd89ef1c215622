"""The emulator that runs CUDA kernels on a CPU: what its operations give, that it finds bugs."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

from cuda_on_cpu.runner import KernelFault, Worker

THREADS = 48  # of the blocks in warp_operations and barrier_votes: a whole warp and half of one
BLOCKS = 2


def rows_of(device: Worker, entry: str, count: int) -> np.ndarray:
    """The result of an entry that puts `count` numbers per thread; blocks must agree."""
    out = np.full((count, BLOCKS, THREADS), -99, np.int32)
    assert device.call(entry, out) == 0
    assert np.array_equal(out[:, 0], out[:, 1])
    return out[:, 0]


def test_shuffles_and_votes(device: Worker) -> None:
    t = np.arange(THREADS)
    lane, value = t % 32, t * 7 + 3
    segment8, segment16 = t // 8 * 8, t // 16 * 16
    ballots = [sum(int(value[i] & 1) << i % 32 for i in warp) for warp in (t[:32], t[32:])]
    expected = [
        value[t - lane + 5],
        value[segment8 + (t + 1) % 8],
        value[np.where(lane < 3, t, t - 3)],
        value[np.where(t % 8 < 3, t, t - 3)],
        value[np.where(t + 2 < segment16 + 16, np.minimum(t + 2, THREADS - 1), t)],
        value[t ^ 5],
        value[np.where((t ^ 9) < segment8 + 8, t ^ 9, t)],
        (2 * (value + 0.5)).astype(int)[t ^ 1],
        np.array(ballots, np.uint32).view(np.int32)[t // 32],
        t >= 32,
        t < 32,
        value[np.where(t % 2, t ^ 2, t ^ 4)],
    ]
    results = rows_of(device, "warp_operations", len(expected))
    for number, (result, wanted) in enumerate(zip(results, expected, strict=True)):
        assert np.array_equal(result, wanted), f"operation {number}"


def test_barriers_that_vote(device: Worker) -> None:
    results = rows_of(device, "barrier_votes", 5)
    assert np.array_equal(results, np.repeat([[16], [1], [0], [1], [0]], THREADS, axis=1))


def test_indices_in_three_dimensions(device: Worker) -> None:
    out = np.full(12 * 60, -1, np.int32)
    assert device.call("indices", out) == 0
    assert np.array_equal(out, np.arange(len(out)))


def test_atomics(device: Worker) -> None:
    ints = np.array([0, -1, 10**6, 0, 0, 0, 0], np.int32)
    floats, doubles = np.zeros(1, np.float32), np.zeros(1)
    assert device.call("atomics", ints, floats, doubles) == 0
    threads = 256
    assert ints[:5].tolist() == [sum(range(threads)), threads - 1, 0, 2**31 - 1, threads % 10]
    assert ints[5] == ints[6] > 0, "one thread finds 0 and leaves its number in both places"
    assert (floats[0], doubles[0]) == (threads / 2, threads / 4)


def test_bit_operations(device: Worker) -> None:
    count = 40
    rng = np.random.default_rng(0)
    numbers = rng.integers(2**32, size=count + 1, dtype=np.uint32)
    numbers[:4] = [0, 1, 2**31, 2**32 - 1]
    # As floats these are doubled below: keep NaNs away.
    numbers[4:] &= 0xBFFFFFFF
    numbers[3] = 0x007FFFFF
    numbers.flags.writeable = False
    out = np.zeros((12, count), np.uint32)
    assert device.call("bit_operations", count, numbers, out) == 0
    for t in range(count):
        x, y = int(numbers[t]), int(numbers[t + 1])
        both = y << 32 | x
        bits = f"{x:032b}"
        source = both.to_bytes(8, "little")
        expected = [
            x * y >> 32,
            x.bit_count(),
            both.bit_count(),
            bits[::-1].find("1") + 1,
            bits.find("1") if x else 32,
            int(bits[::-1], 2),
            both << 5 >> 32 & 0xFFFFFFFF,
            both >> 5 & 0xFFFFFFFF,
            int.from_bytes(bytes(source[i] for i in (0, 5, 2, 6)), "little"),
            int((np.uint32(x).view(np.float32) * np.float32(2)).view(np.uint32)),
            int(max(np.uint32(x).view(np.int32), np.uint32(y).view(np.int32)).view(np.uint32)),
            min(x, y),
        ]
        assert out[:, t].tolist() == expected, f"{x:08x} {y:08x}"


def same_but_for_nans(bits: np.ndarray, expected: torch.Tensor) -> bool:
    """Whether 16-bit patterns are those of `expected`, any NaN being as good as another."""
    result = torch.from_numpy(bits.view(np.int16)).view(expected.dtype)
    nan = expected.isnan()
    equal = result.view(torch.int16) == expected.view(torch.int16)
    return bool(torch.equal(result.isnan(), nan) and equal[~nan].all())


def test_16_bit_floats_widen_exactly(device: Worker) -> None:
    patterns = np.arange(2**16, dtype=np.uint16)
    wide = np.zeros((2, len(patterns)), np.float32)
    assert device.call("widen_halves", len(patterns) // 256, patterns, patterns, wide) == 0
    bits = torch.from_numpy(patterns.view(np.int16))
    for result, dtype in zip(wide, (torch.float16, torch.bfloat16), strict=True):
        expected = bits.view(dtype).float().numpy()
        assert np.array_equal(result, expected, equal_nan=True)


def test_floats_narrow_as_torch_rounds(device: Worker) -> None:
    rng = np.random.default_rng(1)
    anything = rng.integers(2**32, size=2**14, dtype=np.uint32)
    # Values near those that 16 bits can hold, where rounding is decided.
    near = rng.integers(2**16, size=2**14, dtype=np.uint32) << 16
    near += rng.integers(-2, 3, size=len(near)).astype(np.uint32)
    half = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16).float().numpy()
    middle = half + rng.choice([0, 2.0**-25, 2.0**-12], size=len(half)).astype(np.float32)
    wide = np.concatenate([anything.view(np.float32), near.view(np.float32), half, middle])
    to_half, to_bfloat = (np.zeros(len(wide), np.uint16) for _ in range(2))
    assert device.call("narrow_floats", len(wide) // 256, wide, to_half, to_bfloat) == 0
    assert same_but_for_nans(to_half, torch.from_numpy(wide).half())
    assert same_but_for_nans(to_bfloat, torch.from_numpy(wide).bfloat16())


def test_pairs_of_16_bit_floats(device: Worker) -> None:
    patterns = np.random.default_rng(2).integers(0x7C00, size=256, dtype=np.uint16)
    half, bfloat = np.zeros_like(patterns), np.zeros_like(patterns)
    assert device.call("half_pairs", patterns, half, bfloat) == 0
    assert np.array_equal(half, patterns)
    assert np.array_equal(bfloat, patterns)


@pytest.mark.parametrize("size", [4, 8, 16])
@pytest.mark.parametrize("missing", [0, 1, 3, None])
def test_copies_fill_with_zeros(device: Worker, size: int, missing: int | None) -> None:
    valid = 0 if missing is None else size - missing
    source = np.random.default_rng(3).integers(1, 256, size=(32, size), dtype=np.uint8)
    source.flags.writeable = False
    out = np.full_like(source, 0xAA)
    assert device.call("copies", size, valid, source, out) == 0
    assert np.array_equal(out, np.where(np.arange(size) < valid, source, 0))


def test_copies_in_flight_have_not_arrived(emulator: Worker) -> None:
    rows = np.arange(1.0, 1.0 + 5 * 32, dtype=np.float32).reshape(5, 32)
    arrived, in_flight = np.zeros_like(rows), np.zeros_like(rows)
    assert emulator.call("pipeline", len(rows), rows, arrived, in_flight) == 0
    assert np.array_equal(arrived, rows)
    assert np.isnan(in_flight[:-1]).all(), "a copy in flight may not be relied on"


def test_shared_memory_starts_poisoned(emulator: Worker) -> None:
    out = np.zeros((3, 4 + 10), np.int32)
    assert emulator.call("fresh_shared", len(out), 10, out) == 0
    poison = 0x7E if emulator.mode == "reverse" else 0xFF
    assert (out.view(np.uint8) == poison).all(), "whatever an earlier block has left there"


def test_large_dynamic_shared_memory(device: Worker) -> None:
    threads, per_thread = 1024, 24  # 96 KiB, which every GPU has that the kernels run on
    out = np.zeros(1, np.int32)
    assert device.call("large_shared", threads, per_thread, out) == 0
    assert out[0] == threads * sum(range(per_thread))


@pytest.mark.parametrize(
    ("shape", "status"),
    [
        ((1, 1, 1024, 1, 4), 0),
        ((0, 1, 32, 1, 4), 9),
        ((1, 65536, 32, 1, 4), 9),
        ((1, 1, 1025, 1, 4), 9),
        ((1, 1, 1, 65, 4), 9),
        ((1, 1, 32, 1, 228 * 1024), 1),
    ],
)
def test_impossible_launches(device: Worker, shape: tuple[int, ...], status: int) -> None:
    # An impossible configuration is 9 (invalid configuration) or 1 (invalid value) to a driver.
    possible = (1, 9) if device.mode == "gpu" and status == 9 else (status,)
    assert device.call("launch_shape", *shape, np.zeros(1, np.int32)) in possible


# ---- Planted bugs ------------------------------------------------------------------------------

CANARY_THREADS = 64
BLOCK_COUNT = 4


def reversed_blocks(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, CANARY_THREADS)[:, ::-1].ravel()


def rotated_warps(x: np.ndarray) -> np.ndarray:
    return np.roll(x.reshape(-1, 32), -1, axis=1).ravel()


def shifted_blocks(x: np.ndarray) -> np.ndarray:
    shifted = np.roll(x.reshape(-1, CANARY_THREADS), 1, axis=1)
    shifted[:, 0] = 0
    return shifted.ravel()


def folded_warps(x: np.ndarray) -> np.ndarray:
    folded = x.reshape(-1, 32).copy()
    folded[:, :16] += folded[:, 16:]
    return folded.ravel()


def plus_next(x: np.ndarray) -> np.ndarray:
    return x + np.append(x[1:], np.float32(0))


def first_elements_summed(x: np.ndarray) -> np.ndarray:
    return x[::CANARY_THREADS].sum(keepdims=True)


def every_second_block_summed(x: np.ndarray) -> np.ndarray:
    return x[::CANARY_THREADS].reshape(-1, 2).sum(axis=0)


def plus_next_block(x: np.ndarray) -> np.ndarray:
    return x + np.roll(x, -CANARY_THREADS)


def plus_next_block_reversed(x: np.ndarray) -> np.ndarray:
    return reversed_blocks(plus_next_block(x))


def copied(x: np.ndarray) -> np.ndarray:
    return x


WRONG = "wrong result"
RACE = "data race"
SCHEDULES = {"forward", "reverse", "random"}
EVERYWHERE = SCHEDULES | {"asan", "tsan"}
MISALIGNED = r"(binding|store) to misaligned address .*requires 16 byte alignment"
OUT_OF_BOUNDS = "heap-buffer-overflow|use-after-poison|out of bounds"

# name: what the clean kernel computes, and in which modes the planted bug must be reported as what.
CANARIES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], dict[str, set[str]]]] = {
    "missing_barrier": (reversed_blocks, {WRONG: SCHEDULES, RACE: {"tsan"}}),
    "missing_second_barrier": (copied, {WRONG: SCHEDULES, RACE: {"tsan"}}),
    "missing_warp_barrier": (rotated_warps, {WRONG: SCHEDULES, RACE: {"tsan"}}),
    "read_past_the_end": (plus_next, {OUT_OF_BOUNDS: {"asan"}}),
    "write_past_the_end": (copied, {OUT_OF_BOUNDS: {"asan"}}),
    "write_past_shared": (shifted_blocks, {OUT_OF_BOUNDS: {"asan"}}),
    "short_dynamic_shared": (reversed_blocks, {OUT_OF_BOUNDS: {"asan"}}),
    "misaligned_load": (copied, {MISALIGNED: {"asan"}}),
    "misaligned_store": (copied, {MISALIGNED: {"asan"}}),
    "racing_add": (every_second_block_summed, {RACE: {"tsan"}}),
    "missing_fence": (first_elements_summed, {RACE: {"tsan"}}),
    "missing_copy_wait": (copied, {WRONG: EVERYWHERE}),
    "missing_barrier_after_copy": (reversed_blocks, {WRONG: SCHEDULES, RACE: {"tsan"}}),
    "stale_stage": (plus_next_block, {WRONG: EVERYWHERE}),
    "stage_filled_too_early": (plus_next_block_reversed, {WRONG: SCHEDULES, RACE: {"tsan"}}),
    "misaligned_copy": (copied, {"addresses that are not aligned": EVERYWHERE}),
    "divergent_barrier": (copied, {"wait at another barrier": EVERYWHERE}),
    "return_before_barrier": (
        copied,
        {"returned before this barrier|wait at this barrier": EVERYWHERE},
    ),
    "uninitialised_shared": (copied, {WRONG: EVERYWHERE}),
    "lanes_missing_from_shuffle": (
        folded_warps,
        {r"reads lane \d+, which does not take part|deadlock": EVERYWHERE},
    ),
    "shuffle_from_outside_mask": (
        folded_warps,
        {r"reads lane \d+, which does not take part": EVERYWHERE},
    ),
}


def run_canary(emulator: Worker, name: str, planted: bool) -> str:
    """What was reported: the fault, WRONG, or nothing."""
    n = BLOCK_COUNT * CANARY_THREADS
    if name in ("write_past_the_end", "return_before_barrier"):
        n -= 10
    x = np.arange(1, n + 1, dtype=np.float32)
    x.flags.writeable = False
    expected = CANARIES[name][0](x)
    out = np.zeros(n, np.float32)
    try:
        assert emulator.call(f"canary_{name}", int(planted), BLOCK_COUNT, x, out, n) == 0
    except KernelFault as fault:
        return str(fault)
    return "" if np.array_equal(out[: len(expected)], expected) else WRONG


@pytest.mark.parametrize("name", CANARIES)
def test_planted_bug_is_reported(emulator: Worker, name: str) -> None:
    report = run_canary(emulator, name, planted=True)
    for wanted, modes in CANARIES[name][1].items():
        if emulator.mode in modes:
            assert re.search(wanted, report), report or "nothing was reported"


@pytest.mark.parametrize("name", CANARIES)
def test_clean_kernel_passes(emulator: Worker, name: str) -> None:
    assert run_canary(emulator, name, planted=False) == ""


def test_report_names_kernel_thread_file_and_line(emulator: Worker) -> None:
    report = run_canary(emulator, "shuffle_from_outside_mask", planted=True)
    place = r"kernel .*shuffle_from_outside_mask.* block \(\d, 0, 0\) thread \(\d+, 0, 0\)"
    assert re.search(rf"{place} at .*canaries\.cuh:\d+", report)


def test_writing_to_an_input_is_reported(emulator: Worker) -> None:
    x = np.arange(64, dtype=np.float32)
    out = np.zeros_like(x)
    out.flags.writeable = False
    with pytest.raises(KernelFault, match="not writeable"):
        emulator.call("canary_missing_barrier", 0, 1, x, out, 64)


def test_a_worker_survives_its_predecessor_s_fault(emulator: Worker) -> None:
    assert run_canary(emulator, "divergent_barrier", planted=True)
    assert run_canary(emulator, "divergent_barrier", planted=False) == ""


def test_wrong_arguments_are_explained(emulator: Worker) -> None:
    with pytest.raises(KernelFault, match="warp_operations: expected an array"):
        emulator.call("warp_operations", 3)
    with pytest.raises(KernelFault, match="warp_operations: wrong number of arguments"):
        emulator.call("warp_operations")
    with pytest.raises(KernelFault, match="no_such_kernel: no such entry"):
        emulator.call("no_such_kernel")
