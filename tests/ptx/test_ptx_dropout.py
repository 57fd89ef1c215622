"""The PTX that nvcc emits for the dropout kernels, run by the interpreter in tests/ptx."""

from __future__ import annotations

import ctypes

import pytest
import torch
from support.dropout_kernels import MASKED, Dims, bits_in_order, mapped, packed
from support.kernel_memory import NUMPY_DTYPES, memory, name_of
from support.tensors import DTYPES, assert_same_bits, random_tensor
from torch import Tensor

from fused_dropout import reference
from ptx.compile import Build
from ptx.device import Device, corrupted
from ptx.dropconnect import OFFSET, SEED, state

CASES = ("one for all", "short rows", "channels_last", "few rows and columns", "reversed", "many")
MOST_DIMS = 4


class Layout(ctypes.Structure):
    """As in kernels.cu."""

    _fields_ = [("count", ctypes.c_int64), ("dims", ctypes.c_int64 * 2 * MOST_DIMS)]


def layout_of(dims: Dims) -> Layout:
    layout = Layout(len(dims))
    for place, dim in zip(layout.dims, dims, strict=False):
        place[:] = dim
    return layout


def kept_by_reference(count: int, p: float) -> Tensor:
    return reference.mask(count, p, seed=SEED, offset=OFFSET)


def run(device: Device, entry: str, input: Tensor, *arguments: object, **keys: object) -> Tensor:
    """The output of an entry; `arguments` go before the operands, `last` after them."""
    residual = keys.get("residual")
    dtype = NUMPY_DTYPES[input.dtype]
    out = device.poisoned(dtype, input.numel())
    operands = (
        device.put(memory(input)),
        0 if residual is None else device.put(memory(residual)),
        out,
        input.numel(),
    )
    name = f"{entry}_{name_of(input.dtype)}"
    assert device.call(name, *arguments, *operands, *keys.get("last", ())) == 0
    return torch.from_numpy(device.get(out, dtype, input.numel())).view(input.dtype)


@pytest.mark.parametrize("warp_groups", [0, 5, 32])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_linear(ptx_device: Device, dtype: torch.dtype, warp_groups: int) -> None:
    for size in (1, 129, 1029):
        input, residual = random_tensor((size,), dtype), random_tensor((size,), dtype, seed=1)
        for p, added in ((0.5, None), (0.3, residual)):
            arguments = (state(ptx_device), p, 1.75, 0.0, -0.5)
            keys = {"residual": added, "last": (warp_groups,)}
            found = run(ptx_device, "dropout_linear", input, *arguments, **keys)
            expected = mapped(input, kept_by_reference(size, p), 1.75, -0.5, added)
            assert_same_bits(found, expected, (size, p))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_masked(ptx_device: Device, case: str, dtype: torch.dtype) -> None:
    dims = MASKED[case][-MOST_DIMS:]
    order = bits_in_order(dims)
    kept = kept_by_reference(int(order.max()) + 1, 0.5)
    input = random_tensor((len(order),), dtype)
    arguments = (ptx_device.put(packed(kept)), layout_of(dims), 1.75, 0.0, -0.5)
    found = run(ptx_device, "dropout_masked", input, *arguments)
    assert_same_bits(found, mapped(input, kept[torch.from_numpy(order)], 1.75, -0.5))


# Of an element without a residual: its word is stored as it is selected.
SELECTED = r"(\s*and\.b32[^;]*;\s*setp[^;]*;\s*selp\.f32[^;]*;\s*mov\.b32\s+%r)"
CORRUPTIONS = {
    "multiplication": (
        r"(fma\.rn\.f32\s+%f\d+, %f\d+), (%f\d+), (%f\d+);" + SELECTED,
        r"\1, \3, \2;\4",
    ),
    "kept and dropped": (
        r"(selp\.f32\s+%f\d+), (%f\d+), (%f\d+),([^;]*;\s*mov\.b32\s+%r)",
        r"\1, \3, \2,\4",
    ),
    "word of the tile": (r"(shr\.u32\s.*), 3;(\s*and\.b32\s.*, 536870908;)", r"\1, 4;\2"),
    "bit of the word": (
        r"(bra\.uni[^;]*;\s*\$L\w+:[^$]*?and\.b32\s+%r\d+, %r\d+), 28;",
        r"\1, 24;",
    ),
    "wait for the elements": (r"(cp\.async\.wait_group) 3;", r"\1 4;"),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_a_corrupted_kernel_is_noticed(build: Build, corruption: str) -> None:
    def is_right(device: Device) -> bool:
        input = random_tensor((1029,))
        arguments = (state(device), 0.5, 1.75, 0.0, -0.5)
        found = run(device, "dropout_linear", input, *arguments, last=(32,))
        return torch.equal(found, mapped(input, kept_by_reference(1029, 0.5), 1.75, -0.5))

    kernel = "linear_kernelIfLi4ELb0"
    assert is_right(corrupted(build, kernel, "add", "add"))
    assert not is_right(corrupted(build, kernel, *CORRUPTIONS[corruption]))
