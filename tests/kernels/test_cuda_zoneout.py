"""The CUDA zoneout kernels, run on the CPU: the reference's choice of elements, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cuda_on_cpu.runner import Misaligned, Worker
from support.dropout_kernels import MASKED, bits_in_order, packed
from support.kernel_memory import check_end, memory, poisoned_array
from torch import Tensor

import fused_dropout
from fused_dropout import reference

SEED, OFFSET = -77, 5
TYPES = {torch.int16: np.int16, torch.int32: np.int32, torch.int64: np.int64}  # moved as they are
ORDERS = {  # of elements that have a mask bit each
    name: dims for name, dims in MASKED.items() if all(stride for _, stride in dims)
}
SIZES = (1, 7, 31, 128, 129, 257, 1000)


def random_bits(count: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Any bits: as floats some of them are NaNs, infinities and subnormals."""
    bounds = torch.iinfo(dtype)
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(bounds.min, bounds.max, (count,), dtype=dtype, generator=generator)


def read_only(tensor: Tensor, offset: int = 0) -> Misaligned:
    """The runner fails a kernel that writes to it."""
    numbers = memory(tensor).copy()
    numbers.flags.writeable = False
    return Misaligned(numbers, offset)


class Problem:
    """New and old elements, and which of them are kept."""

    def __init__(self, device: Worker, count: int, dtype: torch.dtype, kept: Tensor) -> None:
        self.device = device
        self.bits = str(8 * dtype.itemsize)
        self.count = count
        self.input, self.previous = (random_bits(count, dtype, seed) for seed in (1, 2))
        self.kept = kept

    def result(self) -> tuple[np.ndarray, Tensor]:
        """Poisoned memory, and the tensor that looks at it."""
        numbers = poisoned_array(self.device, self.count, TYPES[self.input.dtype])
        return numbers, torch.from_numpy(numbers)[: self.count]

    def run(
        self, entry: str, mask: tuple, last: tuple = (), offsets: tuple[int, ...] = (0, 0, 0)
    ) -> None:
        """Both passes, or the one that `entry` names, against torch.where."""
        (out, found), (d_input, left), (d_previous, right) = (self.result() for _ in range(3))
        off = [offset * self.input.itemsize for offset in offsets]
        reading = (read_only(self.input, off[0]), read_only(self.previous, off[1]))
        passes = {
            "forward": (*reading, Misaligned(out, off[2])),
            "backward": (reading[0], Misaligned(d_input, off[1]), Misaligned(d_previous, off[2])),
        }
        for name, tensors in passes.items():
            full = f"zoneout_{entry.replace('PASS', name)}_{self.bits}"
            assert self.device.call(full, *mask, *tensors, self.count, *last) == 0
        zero = torch.zeros_like(self.input)
        for result, memory_, a, b in (
            (found, out, self.input, self.previous),
            (left, d_input, self.input, zero),
            (right, d_previous, zero, self.input),
        ):
            assert torch.equal(result, torch.where(self.kept, a, b)), (entry, last, offsets)
            check_end(memory_, self.count, (entry, last, offsets))


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("offsets", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_linear(device: Worker, dtype: torch.dtype, offsets: tuple[int, ...]) -> None:
    """As launched for small tensors; each tensor aligned or not."""
    state = fused_dropout.make_rng_state(SEED, OFFSET).numpy()
    for size in SIZES if offsets == (0, 0, 0) else (1, 1000):
        for p in (0.5, 0.3, 0.0, 1.0):
            kept = reference.mask(size, p, seed=SEED, offset=OFFSET)
            Problem(device, size, dtype, kept).run("PASS", (state, p), (), offsets)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("vectors", [0, 1])
@pytest.mark.parametrize(("warp_groups", "by_digits"), [(1, 1), (1, 0), (5, 0), (32, 0)])
def test_linear_of_every_size(
    device: Worker, dtype: torch.dtype, warp_groups: int, by_digits: int, vectors: int
) -> None:
    """The loops of large tensors: many groups a warp, several rounds of the grid; tails."""
    seed, offset = 2**63 + 5, 2**40 + 1
    per_round = 8 * warp_groups * 128  # elements of a block's eight warps
    for size, blocks in ((per_round + 261, 1), (3 * per_round - 1, 2)):
        kept = fused_dropout.mask(size, 0.3, seed=seed, offset=offset)
        last = (warp_groups, by_digits, vectors, blocks)
        Problem(device, size, dtype, kept).run("PASS_as", (seed, offset, 0.3), last)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("order", ORDERS)
def test_orders(device: Worker, order: str, dtype: torch.dtype) -> None:
    """Elements in another order than their bits, as launched and in rounds of a few blocks."""
    dims = ORDERS[order]
    bits = bits_in_order(dims)
    count = len(bits)
    mask = reference.mask(int(bits.max()) + 1, 0.5, seed=SEED, offset=OFFSET)
    drawn = (packed(mask), np.array(dims, np.int64), len(dims))
    problem = Problem(device, count, dtype, mask[torch.from_numpy(bits)])
    for offsets in ((0, 0, 0), (0, 1, 0), (0, 0, 1)):
        problem.run("masked_PASS", drawn, (), offsets)
    for vectors in (0, 1):
        out, found = problem.result()
        reading = (read_only(problem.input), read_only(problem.previous))
        name = f"zoneout_masked_forward_as_{problem.bits}"
        assert device.call(name, *drawn, *reading, out, count, 2, vectors, 1) == 0
        expected = torch.where(problem.kept, problem.input, problem.previous)
        assert torch.equal(found, expected), vectors


def test_empty_tensors_launch_nothing(device: Worker) -> None:
    empty = np.zeros(0, np.int32)
    state = fused_dropout.make_rng_state(SEED).numpy()
    assert device.call("zoneout_forward_32", state, 0.5, empty, empty, empty, 0) == 0
    assert device.call("zoneout_backward_32", state, 0.5, empty, empty, empty, 0) == 0
