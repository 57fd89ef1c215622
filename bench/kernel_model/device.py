"""The modelled device: the entries of launches/, called, and the launches that they make."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .block import Launch, Trace
from .build import Build
from .cubin import KernelInfo, read_cubin
from .execute import execute
from .floats import bfloat16_bits
from .memory import FILLED_AT_MOST, GlobalMemory
from .occupancy import blocks_at_once
from .registers import Array, SassError
from .sass import Instruction, parse_sass

_SIZES = 7  # grid, block, dynamic shared bytes

_LAUNCH = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_void_p),
)
_MEMORY = ctypes.CFUNCTYPE(ctypes.c_size_t, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)
_FILL = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_size_t, ctypes.c_int, ctypes.c_size_t)
_BLOCKS = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t)


class _Model(ctypes.Structure):
    """As in runtime.cpp."""

    _fields_ = [
        ("launch", _LAUNCH),
        ("memory", _MEMORY),
        ("fill", _FILL),
        ("blocks_at_once", _BLOCKS),
    ]


@functools.cache
def _code_of(build: Build) -> tuple[dict[str, list[Instruction]], dict[str, KernelInfo]]:
    return parse_sass(build.sass.read_text())[1], read_cubin(build.cubin)


class Device:
    """Fresh memory, and the kernels of one file in launches/.

    `contents` gives what arrays hold before the launches; others hold random numbers. Arrays in
    `in_dram` are too large for L2 or used first, all others are taken to be in L2.
    """

    def __init__(
        self,
        build: Build,
        contents: Mapping[str, Array] | None = None,
        in_dram: frozenset[str] = frozenset(),
    ) -> None:
        self.memory = GlobalMemory()
        self.code, self.kernels = _code_of(build)
        self.launches: list[Launch] = []
        self._library = ctypes.CDLL(str(build.library))
        self._contents = dict(contents or {})
        self._in_dram = in_dram
        self._error: Exception | None = None
        self._on_launch: Callable[[Launch], None] = self.launches.append
        self._model = _Model(
            _LAUNCH(self._guarded(self._launch, 1)),
            _MEMORY(self._guarded(self._allocate, 0)),
            _FILL(self._guarded(self._fill, 1)),
            _BLOCKS(self._guarded(self._blocks, 0)),
        )

    def call(self, entry: str, *arguments: int | float) -> list[Launch]:
        """The launches that a function of launches/ makes, none of which is executed."""
        self.launches.clear()
        self._library.set_model(self._model)
        function = self._library[entry]
        function.restype = ctypes.c_int
        error = function(*(_as_c(argument) for argument in arguments))
        if self._error:
            raise self._error
        if error:
            raise SassError(f"{entry} failed with CUDA error {error}")
        return list(self.launches)

    def execute(self, launch: Launch, number: int) -> Trace:
        """One block of a launch."""
        return execute(self.code, launch, number, self.memory)

    def run(self, entry: str, *arguments: int | float) -> None:
        """Executes all blocks of all launches."""
        for launch in self.call(entry, *arguments):
            for number in range(launch.blocks):
                self.execute(launch, number)

    # ---- what runtime.cpp calls

    def _guarded(self, function: Callable[..., int], failure: int) -> Callable[..., int]:
        """An exception must not pass through the C++ code in between."""

        def call(*arguments: Any) -> int:
            try:
                return function(*arguments)
            except Exception as error:
                self._error = error
                return failure

        return call

    def _launch(self, name: bytes, sizes: Any, arguments: Any) -> int:
        kernel = self.kernels[name.decode()]
        grid, block = tuple(sizes[0:3]), tuple(sizes[3:6])
        packed = tuple(
            ctypes.string_at(arguments[k], parameter.size)
            for k, parameter in enumerate(kernel.parameters)
        )
        self._on_launch(Launch(kernel, grid, block, sizes[6], packed))
        return 0

    def _allocate(self, name: bytes, dtype: bytes, size: int) -> int:
        text, kind = name.decode(), dtype.decode()
        is_new = text not in self.memory.regions
        address = self.memory.allocate(text, kind, size, text in self._in_dram)
        if is_new and text in self._contents:
            self.memory.array(text, np.uint8)[:] = self._contents[text].view(np.uint8).ravel()
        elif is_new and size <= FILLED_AT_MOST:
            _fill_randomly(self.memory.array(text, np.uint8), kind)
        return address

    def _fill(self, address: int, byte: int, count: int) -> int:
        raise NotImplementedError("cudaMemset in a launch")

    def _blocks(self, name: bytes, threads: int, shared_bytes: int) -> int:
        return blocks_at_once(self.kernels[name.decode()], threads, shared_bytes)


def _fill_randomly(array: Array, dtype: str) -> None:
    """Normally distributed numbers, or any bits; a short sample over and over."""
    random = np.random.default_rng(1)
    if dtype.startswith(("uint", "int")):
        sample = random.integers(0, 256, 1 << 16).astype(np.uint8)
    elif dtype == "bfloat16":
        sample = bfloat16_bits(random.standard_normal(1 << 15).astype(np.float32)).view(np.uint8)
    else:
        sample = random.standard_normal(1 << 14).astype(dtype).view(np.uint8)
    for start in range(0, len(array), len(sample)):
        part = array[start : start + len(sample)]
        part[:] = sample[: len(part)]


def _as_c(argument: int | float) -> object:
    if isinstance(argument, float):
        return ctypes.c_double(argument)
    return ctypes.c_int64(argument)
