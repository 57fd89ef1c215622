"""Global and shared memory of the interpreted device; every access is checked."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .parse import PtxError

POISON = 0xFF  # of memory that nobody wrote: NaN as a float
FIRST_ADDRESS = 0x7F00_0000_0000  # of global memory
SHARED_WINDOW = 1 << 40  # of shared memory among generic addresses
ALIGNMENT = 256  # of an allocation, as cudaMalloc's
GAP = 256  # bytes between allocations that belong to nobody

Numbers = NDArray[Any]
Offsets = NDArray[np.int64]


def misplaced(offsets: Offsets, size: int, what: str) -> None:
    """Raises if an offset is not a multiple of the access's size."""
    if (offsets % size).any():
        raise PtxError(f"misaligned {what} access of {size} bytes")


class Memory:
    """Bytes that are read and written at offsets, one per thread."""

    def __init__(self, size: int) -> None:
        self.bytes = np.full(-(-size // 16) * 16, POISON, np.uint8)

    def load(self, offsets: Offsets, dtype: np.dtype[np.generic]) -> Numbers:
        return self.bytes.view(dtype)[offsets // dtype.itemsize]

    def store(self, offsets: Offsets, numbers: Numbers) -> None:
        self.bytes.view(numbers.dtype)[offsets // numbers.itemsize] = numbers


class GlobalMemory(Memory):
    """What cudaMalloc hands out."""

    def __init__(self, size: int = 1 << 23) -> None:
        super().__init__(size)
        self.allocated = np.zeros(len(self.bytes), bool)
        self.end = 0

    def allocate(self, size: int) -> int:
        """The address of `size` fresh bytes."""
        start, self.end = self.end, -(-(self.end + size + GAP) // ALIGNMENT) * ALIGNMENT
        if self.end > len(self.bytes):
            raise PtxError("out of memory")
        self.allocated[start : start + size] = True
        return FIRST_ADDRESS + start

    def put(self, numbers: Numbers) -> int:
        """The address of a copy."""
        data = np.ascontiguousarray(numbers)
        address = self.allocate(data.nbytes)
        start = address - FIRST_ADDRESS
        self.bytes[start : start + data.nbytes] = data.reshape(-1).view(np.uint8)
        return address

    def get(self, address: int, dtype: type[np.generic], shape: tuple[int, ...]) -> Numbers:
        """A copy of what stands at an address."""
        start = address - FIRST_ADDRESS
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.bytes[start : start + size].copy().view(dtype).reshape(shape)

    def offsets(self, addresses: Offsets, size: int) -> Offsets:
        """Where accesses of `size` bytes go."""
        misplaced(addresses, size, "global")
        offsets = addresses - FIRST_ADDRESS
        inside = (offsets >= 0) & (offsets <= len(self.bytes) - size)
        if not inside.all() or not self.allocated[offsets].all():
            raise PtxError("global access out of bounds")
        if not self.allocated[offsets + size - 1].all():
            raise PtxError("global access out of bounds")
        return offsets

    def read_bytes(self, address: int, count: int, alignment: int) -> NDArray[np.uint8]:
        """The `count` bytes at an address."""
        misplaced(np.array([address]), alignment, "global")
        start = address - FIRST_ADDRESS
        if start < 0 or not self.allocated[start : start + count].all():
            raise PtxError("global access out of bounds")
        return self.bytes[start : start + count]


class SharedMemory(Memory):
    """The shared memory of all blocks, one after another."""

    def __init__(self, blocks: int, size: int) -> None:
        self.size = size
        self.stride = -(-size // 128) * 128
        super().__init__(blocks * self.stride)

    def offsets(self, addresses: Offsets, size: int, blocks: Offsets) -> Offsets:
        """Where accesses of `size` bytes by threads of `blocks` go."""
        misplaced(addresses, size, "shared")
        if ((addresses < 0) | (addresses > self.size - size)).any():
            raise PtxError("shared access out of bounds")
        return addresses + blocks * self.stride
