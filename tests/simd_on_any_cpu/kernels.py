"""Calls of the functions of entries.h, and the memory that they write to."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # in ScalarType's order
MARGIN = 37  # elements; odd, so that memory is aligned to an element alone
OUT = object()  # where an entry takes its output
RESULTS = {
    "dropconnect_mask_words": ctypes.c_int64,
    "drop_block_count_bits": ctypes.c_int64,
    "concrete_dropout_backward": ctypes.c_double,
    "concrete_dropout_multiply_and_sum": ctypes.c_double,
    "mask_weight_all_finite": ctypes.c_int64,
}


class Random(ctypes.Structure):
    """Seed, offset and drop probability of a mask."""

    _fields_ = (("seed", ctypes.c_int64), ("offset", ctypes.c_int64), ("p", ctypes.c_double))


class Affine(ctypes.Structure):
    """What dropout makes of elements: scale * x + shift of a kept one, else fill."""

    _fields_ = tuple((name, ctypes.c_double) for name in ("scale", "shift", "fill"))


class Matrix(ctypes.Structure):
    """A matrix of any strides."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("row_stride", ctypes.c_int64),
        ("col_stride", ctypes.c_int64),
    )


class Layer(ctypes.Structure):
    """The sizes of a DropConnect layer."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("rows", "in_features", "out_features")),
        ("rows_per_mask", ctypes.c_int64),
        ("scale", ctypes.c_double),
    )


def matrix_of(tensor: Tensor) -> Matrix:
    return Matrix(tensor.data_ptr(), *tensor.stride())


def as_argument(value: object) -> Any:
    """A Python value as an entry takes it."""
    if value is None:
        return ctypes.c_void_p(None)
    if isinstance(value, torch.dtype):
        return ctypes.c_int64(TYPES.index(value))
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, ctypes.Structure):
        return ctypes.byref(value)
    return ctypes.c_double(value) if isinstance(value, float) else ctypes.c_int64(value)


class Kernels:
    """A library's entries, as methods: ints are int64_t, floats double, tensors their memory."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        entry = getattr(self._library, name)
        entry.restype = RESULTS.get(name)
        return lambda *arguments: entry(*map(as_argument, arguments))


def filled(
    shape: tuple[int, ...], dtype: torch.dtype, entry: Callable[..., Any], *arguments: object
) -> Tensor:
    """What a call writes to the tensor that it gets in the place of OUT.

    It holds NaNs before; a byte written beside it is an error.
    """
    count = torch.Size(shape).numel()
    memory = torch.full(((count + 2 * MARGIN) * dtype.itemsize,), 0xFF, dtype=torch.uint8)
    elements = memory.view(dtype)
    result = elements[MARGIN : MARGIN + count].view(shape)
    entry(*(result if argument is OUT else argument for argument in arguments))
    margin = MARGIN * dtype.itemsize
    beside = torch.cat([memory[:margin], memory[-margin:]])
    assert (beside == 0xFF).all(), "a kernel wrote outside its output"
    return result
