"""The CUDA dropout kernels, run on the CPU: the reference's bits, whatever the path."""

from __future__ import annotations

import functools
import math
import random

import numpy as np
import pytest
import torch
from cuda_on_cpu.runner import Misaligned, Worker
from support.dropout_kernels import MASKED, Dims, bits_in_order, mapped, packed
from support.kernel_memory import check_end, memory, name_of, poisoned
from support.tensors import DTYPES, assert_same_bits, random_tensor
from torch import Tensor

import fused_dropout
from fused_dropout import reference

SEED, OFFSET = -77, 5
WITH_RESIDUAL, IN_PLACE = 1, 2
WARP_LANES = 32


def state() -> np.ndarray:
    return fused_dropout.make_rng_state(SEED, OFFSET).numpy()


@functools.cache
def kept_by_reference(count: int, p: float) -> Tensor:
    return reference.mask(count, p, seed=SEED, offset=OFFSET)


class Result:
    """Poisoned memory that a kernel fills, `offset` bytes past an aligned address."""

    def __init__(self, device: Worker, input: Tensor, offset: int = 0, copied: bool = False):
        self.numbers, self.tensor = poisoned(device, *input.shape, dtype=input.dtype)
        if copied:
            self.tensor.copy_(input)
        self.argument = Misaligned(self.numbers, offset)

    def check(self, expected: Tensor, what: object) -> None:
        assert_same_bits(self.tensor, expected, what)
        check_end(self.numbers, expected.numel(), what)


def read_only(tensor: Tensor, offset: int = 0) -> Misaligned:
    """The runner fails a kernel that writes to it."""
    numbers = memory(tensor).copy()
    numbers.flags.writeable = False
    return Misaligned(numbers, offset)


# ---- elements in the order of their bits

SIZES = (1, 3, 7, 8, 31, 32, 100, 127, 128, 129, 256, 257, 1000, 2049)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("offsets", [(0, 0, 0), (0, 0, 1), (1, 0, 0), (0, 1, 0)])
def test_linear(device: Worker, dtype: torch.dtype, offsets: tuple[int, int, int]) -> None:
    """As launched for small tensors: one group a warp, its digits by lanes; aligned or not."""
    bytes_off = [offset * dtype.itemsize for offset in offsets]
    for size in SIZES if offsets == (0, 0, 0) else (1, 129, 1000):
        input, residual = random_tensor((size,), dtype), random_tensor((size,), dtype, seed=1)
        for p, flags in ((0.5, 0), (0.3, WITH_RESIDUAL), (0.1, IN_PLACE), (0.0, 0), (1.0, 3)):
            result = Result(device, input, bytes_off[2], copied=bool(flags & IN_PLACE))
            operands = (read_only(input, bytes_off[0]), read_only(residual, bytes_off[1]))
            arguments = (state(), p, 1.75, 0.0, -0.5, *operands, result.argument, size, flags)
            assert device.call(f"dropout_linear_{name_of(dtype)}", *arguments) == 0
            added = residual if flags & WITH_RESIDUAL else None
            expected = mapped(input, kept_by_reference(size, p), 1.75, -0.5, added)
            result.check(expected, (size, p, flags))


@pytest.mark.parametrize("vectors", [0, 1])
@pytest.mark.parametrize(
    ("warp_groups", "by_digits"), [(1, 1), (2, 1), (1, 0), (2, 0), (5, 0), (32, 0)]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear_of_every_size(
    device: Worker, dtype: torch.dtype, warp_groups: int, by_digits: int, vectors: int
) -> None:
    """The loops of large tensors: many groups a warp, several rounds of the grid; tails."""
    seed, offset = 2**63 + 5, 2**40 + 1
    per_round = 8 * warp_groups * 128  # elements of a block's eight warps
    for size, blocks in ((per_round + 261, 1), (3 * per_round - 1, 2), (128 * warp_groups, 1)):
        for p, flags in ((0.5, 0), (0.3, 0), (0.3, IN_PLACE)):
            input = random_tensor((size,), dtype)
            result = Result(device, input, copied=bool(flags & IN_PLACE))
            arguments = (read_only(input), result.argument, size, flags, warp_groups, by_digits)
            name = f"dropout_linear_as_{name_of(dtype)}"
            assert device.call(name, seed, offset, p, *arguments, vectors, blocks) == 0
            kept = fused_dropout.mask(size, p, seed=seed, offset=offset)
            result.check(mapped(input, kept, 2.0), (size, blocks, p, flags))


def test_linear_special_values(device: Worker) -> None:
    """NaNs and infinities stay with kept elements, -0 keeps its sign, a shift is added."""
    specials = torch.tensor([math.nan, math.inf, -math.inf, -0.0, 0.0, 1e-40, 3e38, -1.5])
    for dtype in DTYPES:
        input = specials.repeat(40).to(dtype)
        for shift in (0.0, 0.25):
            result = Result(device, input)
            operands = (read_only(input), read_only(input), result.argument, input.numel(), 0)
            arguments = (state(), 0.5, 1.0, shift, -2.0, *operands)
            assert device.call(f"dropout_linear_{name_of(dtype)}", *arguments) == 0
            kept = kept_by_reference(input.numel(), 0.5)
            result.check(mapped(input, kept, 1.0, -2.0, shift=shift), (dtype, shift))


# ---- elements in another order


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", MASKED)
def test_masked(device: Worker, case: str, dtype: torch.dtype) -> None:
    dims = MASKED[case]
    order = bits_in_order(dims)
    kept = kept_by_reference(int(order.max()) + 1, 0.5)
    expected_kept, shape = kept[torch.from_numpy(order)], (len(order),)
    input, residual = random_tensor(shape, dtype), random_tensor(shape, dtype, seed=1)
    dims_array = np.array(dims, np.int64)
    # The last of each pair: which of input, residual and result are misaligned.
    for flags, misaligned in (
        *((flags, (0, 0, 0)) for flags in (0, WITH_RESIDUAL, IN_PLACE)),
        *((WITH_RESIDUAL, one) for one in ((1, 0, 0), (0, 1, 0), (0, 0, 1))),
        (IN_PLACE | WITH_RESIDUAL, (0, 0, 1)),
    ):
        offsets = [is_off * dtype.itemsize for is_off in misaligned]
        result = Result(device, input, offsets[2], copied=bool(flags & IN_PLACE))
        operands = (read_only(input, offsets[0]), read_only(residual, offsets[1]), result.argument)
        arguments = (packed(kept), dims_array, len(dims), 1.75, 0.0, -0.5, *operands)
        assert device.call(f"dropout_masked_{name_of(dtype)}", *arguments, len(order), flags) == 0
        added = residual if flags & WITH_RESIDUAL else None
        result.check(mapped(input, expected_kept, 1.75, -0.5, added), (flags, misaligned))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize(
    ("dims", "transposed"),
    [(((2, 40 * 70), (70, 1), (40, 70)), 1), (((33, 1), (300, 33)), 1), (((60, 1), (90, 0)), 0)],
)
def test_more_elements_than_threads(
    device: Worker, dims: Dims, transposed: int, blocks: int, dtype: torch.dtype
) -> None:
    order = bits_in_order(dims)
    kept = kept_by_reference(int(order.max()) + 1, 0.3)
    input = random_tensor((len(order),), dtype)
    expected = mapped(input, kept[torch.from_numpy(order)], 2.0)
    dims_array = np.array(dims, np.int64)
    for flags in (0, IN_PLACE):
        result = Result(device, input, copied=bool(flags & IN_PLACE))
        operands = (read_only(input), result.argument, len(order), flags)
        arguments = (packed(kept), dims_array, len(dims), *operands, transposed, blocks)
        assert device.call(f"dropout_masked_in_blocks_{name_of(dtype)}", *arguments) == 0
        result.check(expected, flags)


def test_empty_tensors_launch_nothing(device: Worker) -> None:
    empty = np.zeros(0, np.float32)
    operands = (empty, empty, empty, 0, 0)
    assert device.call("dropout_linear_float32", state(), 0.5, 2.0, 0.0, 0.0, *operands) == 0
    dims = np.array([(0, 1), (3, 0)], np.int64)
    bits = np.zeros(4, np.uint32)
    assert device.call("dropout_masked_float32", bits, dims, 2, 2.0, 0.0, 0.0, *operands) == 0


# ---- what they are built from

DIVISORS = sorted(
    {1, 2, 3, 5, 7, 10, 641, 12289, 10**9 + 7, 10**18 + 9, 2**62 - 1, 2**62}
    | {2**k + d for k in (2, 5, 16, 31, 32, 33, 48, 61) for d in (-1, 0, 1)}
)


@pytest.mark.parametrize("divisor", DIVISORS)
def test_quotients_are_exact(device: Worker, divisor: int) -> None:
    draw = random.Random(divisor)
    numbers = {0, 1, divisor - 1, divisor, divisor + 1, 2**31, 2**32, 2**62, 2**63 - 1}
    numbers |= {draw.randrange(2 ** draw.randrange(1, 64)) for _ in range(300)}
    for _ in range(100):  # where rounding would show
        multiple = divisor * draw.randrange(2**63 // divisor)
        numbers |= {multiple, max(multiple - 1, 0)}
    dividends = np.array(sorted(numbers), np.int64)
    out = np.full(len(dividends), -1, np.int64)
    assert device.call("quotients", divisor, dividends, len(dividends), out) == 0
    assert out.tolist() == [number // divisor for number in dividends.tolist()]


@pytest.mark.parametrize("digits", range(1, 17))
def test_lanes_draw_what_one_thread_draws(device: Worker, digits: int) -> None:
    """keep_group_by_lanes equals keep_group, in every lane, for each number of digits."""
    smallest = 0.5**digits  # T is odd, so that all digits count
    for p in {smallest, 1 - smallest, 1 - smallest * (0x5555 % 2**digits | 1)}:
        out = np.zeros((WARP_LANES, 4), np.uint32)
        assert device.call("draw_by_lanes", state(), p, digits, 3, out) == 0
        keys = {"seed": SEED, "offset": OFFSET, "digits": digits}
        groups = fused_dropout.packed_mask((1, 5 * 128), p, **keys).numpy().reshape(5, 4)
        assert np.array_equal(out, groups[3:].repeat(WARP_LANES // 2, axis=0)), p
