"""A device that runs the PTX of kernels.cu: memory, and the entries that launch kernels."""

from __future__ import annotations

import ctypes
import functools
import re
from pathlib import Path

import numpy as np

from .compile import Build
from .machine import Launch, Machine
from .memory import POISON, GlobalMemory, Numbers
from .parse import Kernel, PtxError, parse

LaunchFunction = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.POINTER(ctypes.c_void_p),
)


class Layer(ctypes.Structure):
    """As in kernels.cu."""

    _fields_ = [
        (name, ctypes.c_int64) for name in ("rows", "in_features", "out_features", "rows_per_mask")
    ]


class Device:
    """Fresh memory, and the kernels that nvcc made; those in the PTX `changed` take their place."""

    def __init__(self, build: Build, changed: str = "") -> None:
        self.memory = GlobalMemory()
        self._kernels = {**kernels_in(build.ptx), **parse(changed)}
        self._library = ctypes.CDLL(str(build.library))
        self._error: Exception | None = None

    def put(self, numbers: Numbers) -> int:
        """The address of a copy in the device's memory."""
        return self.memory.put(numbers)

    def poisoned(self, dtype: type[np.generic], *shape: int) -> int:
        """The address of memory for a result."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.put(np.full(size, POISON, np.uint8))

    def get(self, address: int, dtype: type[np.generic], *shape: int) -> Numbers:
        """A copy of an array in the device's memory."""
        return self.memory.get(address, dtype, shape)

    def call(self, entry: str, *arguments: int | float | Layer) -> int:
        """Calls a function of kernels.cu; addresses are ints."""
        launch = LaunchFunction(self._launch)
        self._library.set_launch(launch)
        function = self._library[entry]
        function.restype = ctypes.c_int64 if entry.endswith("_workspace") else ctypes.c_int
        result = int(function(*map(as_c, arguments)))
        if self._error:
            raise self._error
        return result

    def _launch(self, name: bytes, sizes: ctypes._Pointer, arguments: ctypes._Pointer) -> int:
        # An exception must not pass through the C++ code in between.
        try:
            self._run(name.decode(), sizes[:7], arguments)
        except Exception as error:
            self._error = error
            return 1
        return 0

    def _run(self, name: str, sizes: list[int], arguments: ctypes._Pointer) -> None:
        if name not in self._kernels:
            raise PtxError(f"no kernel {name} in the PTX")
        kernel = self._kernels[name]
        grid, block = (sizes[0], sizes[1], sizes[2]), (sizes[3], sizes[4], sizes[5])
        packed = tuple(
            ctypes.string_at(arguments[k], size)
            for k, size in enumerate(kernel.parameters.values())
        )
        Machine(kernel, Launch(grid, block, sizes[6], packed), self.memory).run()


@functools.cache
def kernels_in(path: Path) -> dict[str, Kernel]:
    """The kernels of a PTX file, which takes longer to read than most kernels to run."""
    return parse(path.read_text())


def as_c(argument: int | float | Layer) -> object:
    """The argument as ctypes passes it."""
    if isinstance(argument, float):
        return ctypes.c_double(argument)
    return ctypes.c_uint64(argument) if isinstance(argument, int) else argument


def corrupted(
    build: Build, kernel: str, pattern: str, replacement: str, *, last: bool = False
) -> Device:
    """A device with one instruction of a kernel changed: the first that matches, or the last."""
    text = build.ptx.read_text()
    entry = re.search(rf"\.entry [^\n]*{kernel}.*?^}}", text, re.S | re.M)
    assert entry
    found = list(re.finditer(pattern, entry[0]))
    assert found, f"nothing like {pattern} in {kernel}"
    match = found[-1 if last else 0]
    changed = entry[0][: match.start()] + match.expand(replacement) + entry[0][match.end() :]
    declarations = text[: text.index(".entry")]
    return Device(build, declarations + changed)
