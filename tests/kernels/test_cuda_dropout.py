"""The CUDA dropout kernels, run on the CPU: the reference's bits, whatever the path."""

from __future__ import annotations

import dataclasses
import functools
import math
import random

import numpy as np
import pytest
import torch
from cuda_on_cpu.runner import Argument, Misaligned, Worker
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
            assert device.call(name, seed, offset, p, *arguments, vectors, blocks, 0) == 0
            kept = fused_dropout.mask(size, p, seed=seed, offset=offset)
            result.check(mapped(input, kept, 2.0), (size, blocks, p, flags))
        first_group = 3  # of a part of a larger tensor
        result = Result(device, input)
        arguments = (read_only(input), result.argument, size, 0, warp_groups, by_digits)
        assert device.call(name, seed, offset, p, *arguments, vectors, blocks, first_group) == 0
        kept = fused_dropout.mask(first_group * 128 + size, p, seed=seed, offset=offset)
        result.check(mapped(input, kept[first_group * 128 :], 2.0), (size, blocks, "part"))


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

RUNS = (2, 3, 7, 31, 32, 33, 49, 129)
SHARED: dict[str, Dims] = {
    **{f"runs of {run}": ((-(-300 // run), 1), (run, 0)) for run in RUNS},
    "one bit a sample": ((3, 1), (1500, 0)),
    "features of sequences": ((3, 24), (20, 0), (24, 1)),
    "odd features of sequences": ((2, 47), (9, 0), (47, 1)),
    "many features": ((2, 300), (3, 0), (300, 1)),
    "sizes of 1": ((1, 5), (4, 1), (1, 0), (40, 0)),
}
CHANNELS = (2, 3, 7, 8, 9, 16, 17, 33, 64, 257)
CHANNELS_LAST: dict[str, Dims] = {
    f"{channels} channels, {rows} rows": ((2, channels * rows), (rows, 1), (channels, rows))
    for channels, rows in ((2, 8), (3, 49), (7, 33), (8, 7), (9, 5), (16, 49), (17, 8), (33, 40))
}
ORDERS = {**MASKED, **SHARED, **CHANNELS_LAST}


@dataclasses.dataclass
class Case:
    """Elements in the order of `dims`, and what dropout makes of them."""

    dims: Dims
    dtype: torch.dtype
    p: float = 0.5

    def __post_init__(self) -> None:
        order = bits_in_order(self.dims)
        self.count = len(order)
        self.bits = kept_by_reference(int(order.max()) + 1, self.p)
        self.kept = self.bits[torch.from_numpy(order)]
        self.input = random_tensor((self.count,), self.dtype)
        self.layout = (np.array(self.dims, np.int64), len(self.dims))

    def is_drawn_by_tile(self, device: Worker) -> bool:
        tile = 128 * groups_per_warp(self.count)
        return device.call("most_groups", *self.layout, self.count, tile) <= WARP_LANES


def groups_per_warp(count: int) -> int:
    """Of tensors as small as here."""
    assert count <= 128 * 2 * 132 * 16
    return 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_orders(device: Worker, order: str, dtype: torch.dtype) -> None:
    """As launched for small tensors, for a mask that is there and for one that the kernel draws."""
    case = Case(ORDERS[order], dtype)
    residual = random_tensor((case.count,), dtype, seed=1)
    # The last of each pair: which of input, residual and result are misaligned.
    for flags, misaligned in (
        *((flags, (0, 0, 0)) for flags in (0, WITH_RESIDUAL, IN_PLACE)),
        *((WITH_RESIDUAL, one) for one in ((1, 0, 0), (0, 1, 0), (0, 0, 1))),
        (IN_PLACE | WITH_RESIDUAL, (0, 0, 1)),
    ):
        offsets = [is_off * dtype.itemsize for is_off in misaligned]
        operands = (read_only(case.input, offsets[0]), read_only(residual, offsets[1]))
        added = residual if flags & WITH_RESIDUAL else None
        expected = mapped(case.input, case.kept, 1.75, -0.5, added)
        for entry, mask in (("masked", (packed(case.bits),)), ("shared", (state(), case.p))):
            result = Result(device, case.input, offsets[2], copied=bool(flags & IN_PLACE))
            arguments = (*mask, *case.layout, 1.75, 0.0, -0.5, *operands, result.argument)
            status = device.call(f"dropout_{entry}_{name_of(dtype)}", *arguments, case.count, flags)
            if entry == "shared" and not case.is_drawn_by_tile(device):
                assert status == -1
                continue
            assert status == 0
            result.check(expected, (entry, flags, misaligned))


def test_which_masks_a_tile_draws(device: Worker) -> None:
    drawn = {
        name for name, dims in ORDERS.items() if Case(dims, torch.float32).is_drawn_by_tile(device)
    }
    assert set(SHARED) <= drawn
    assert {"channels", "steps in a sequence", "batch first", "one for all"} <= drawn
    assert "channels_last" not in drawn


def check_large(
    device: Worker, entry: str, case: Case, mask: tuple[Argument, ...], *last: int
) -> None:
    for flags in (0, IN_PLACE):
        result = Result(device, case.input, copied=bool(flags & IN_PLACE))
        operands = (read_only(case.input), result.argument, case.count, flags)
        name = f"dropout_{entry}_as_{name_of(case.dtype)}"
        assert device.call(name, *mask, *case.layout, *operands, *last) == 0
        result.check(mapped(case.input, case.kept, 2.0), (entry, case.dims, flags, last))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("vectors", [0, 1])
@pytest.mark.parametrize(("warp_groups", "blocks"), [(32, 1), (3, 2)])
def test_tiles_of_large_tensors(
    device: Worker, warp_groups: int, blocks: int, vectors: int, dtype: torch.dtype
) -> None:
    """Many groups a tile, several rounds of the grid; tails."""
    elements = 8 * warp_groups * blocks * 128 + 261  # more than a round
    for dims in (
        ((-(-elements // 49), 1), (49, 0)),
        ((-(-elements // 1000), 1), (1000, 0)),
        ((5, 120), (elements // 600 + 1, 0), (120, 1)),
        ((elements, 1),),
    ):
        case = Case(dims, dtype, 0.3)
        tiles = (warp_groups, vectors, blocks)
        check_large(device, "masked", case, (packed(case.bits),), *tiles)
        for by_digits in (0, 1):
            drawn = (warp_groups, by_digits, vectors, blocks)
            check_large(device, "shared", case, (state(), case.p), *drawn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("columns", [32, 128])
@pytest.mark.parametrize("channels", CHANNELS)
def test_channels_last(device: Worker, channels: int, columns: int, dtype: torch.dtype) -> None:
    """Tiles of several strips of 32 rows, or of a part of the columns; of planes of any size."""
    strips = max(columns // channels, 1)
    for rows in (32 * strips + 1, 64 * strips, 5):
        case = Case(((3, channels * rows), (rows, 1), (channels, rows)), dtype)
        for vectors, blocks in ((1, 1), (0, 1)):
            check_large(device, "transposed", case, (packed(case.bits),), columns, vectors, blocks)


COLUMNS: dict[str, Dims] = {
    "whole groups": ((2, 63 * 256), (256, 1), (63, 256)),
    "planes between groups": ((2, 32 * 700), (700, 1), (32, 700)),
    "one plane": ((600, 1), (64, 600)),
    "short columns": ((2, 32 * 200), (200, 1), (32, 200)),
    "a video": ((2, 32 * 3 * 128), (3, 128), (128, 1), (32, 3 * 128)),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", COLUMNS)
def test_columns(device: Worker, order: str, dtype: torch.dtype) -> None:
    """Drawn by the kernel as launched, with a residual, in place, and for misaligned tensors."""
    case = Case(COLUMNS[order], dtype, 0.3)
    residual = random_tensor((case.count,), dtype, seed=1)
    for flags, offset in ((0, 0), (WITH_RESIDUAL, 0), (IN_PLACE, 0), (0, 1)):
        off = offset * dtype.itemsize
        result = Result(device, case.input, off, copied=bool(flags & IN_PLACE))
        arguments = (state(), case.p, *case.layout, 1.75, 0.0, -0.5, read_only(case.input))
        operands = (read_only(residual), result.argument, case.count, flags)
        status = device.call(f"dropout_columns_{name_of(dtype)}", *arguments, *operands)
        if order == "short columns":
            assert status == -1  # too many groups would be drawn twice
            continue
        assert status == 0
        added = residual if flags & WITH_RESIDUAL else None
        result.check(mapped(case.input, case.kept, 1.75, -0.5, added), (flags, offset))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(("most_groups", "blocks"), [(2, 1), (4, 2), (8, 1), (8, 3)])
@pytest.mark.parametrize("rows", [5, 128, 784, 1300, 2048])
def test_tiles_of_columns(
    device: Worker, rows: int, most_groups: int, blocks: int, dtype: torch.dtype
) -> None:
    """Tiles of all heights, whose columns begin inside a group or with one; of cut widths."""
    for cols, gap in ((33, 0), (40, 128), (7, 3)):
        case = Case(((rows, 1), (cols, rows + gap)), dtype, 0.1)
        for vectors in (0, 1):
            drawn = (most_groups, vectors, blocks)
            check_large(device, "columns", case, (state(), case.p), *drawn)


@pytest.mark.parametrize("columns", [32, 64, 128])
def test_matrices_with_columns_of_bits(device: Worker, columns: int) -> None:
    """One plane, whose size is no multiple of an access; more tiles than warps."""
    for rows, cols in ((333, 3), (90, 33), (37, 300), (129, 200), (40, 4)):
        for gap in (0, 11):
            case = Case(((rows, 1), (cols, rows + gap)), torch.bfloat16)
            check_large(device, "transposed", case, (packed(case.bits),), columns, 1, 1)


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


def test_small_quotients_are_exact(device: Worker) -> None:
    for divisor in range(1, 129):
        out = np.full(4096, -1, np.int64)
        assert device.call("small_quotients", divisor, len(out), out) == 0
        assert np.array_equal(out, np.arange(4096) // divisor), divisor


def test_transposed_words(device: Worker) -> None:
    words = np.random.default_rng(0).integers(0, 2**32, (5, 32), np.uint32)
    out = np.zeros_like(words)
    assert device.call("transposed_words", words, len(words), out) == 0
    bits = np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little").reshape(5, 32, 32)
    turned = np.packbits(bits.transpose(0, 2, 1), axis=-1, bitorder="little")
    assert np.array_equal(out, turned.copy().view(np.uint32).reshape(5, 32))


@pytest.mark.parametrize("order", ORDERS)
def test_groups_of_a_tile(device: Worker, order: str) -> None:
    """A tile never has bits of more groups than launch_shared reckons with."""
    bits = bits_in_order(ORDERS[order])
    layout = (np.array(ORDERS[order], np.int64), len(ORDERS[order]))
    for tile in (128, 256, 512):
        most = device.call("most_groups", *layout, len(bits), tile)
        for first in range(0, len(bits), tile):
            groups = bits[first : first + tile] // 128
            assert groups.max() - groups.min() < most, (tile, first)


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
