"""The memory of the modelled device and of a block, and what accesses cost.

Device memory is one reservation of addresses that takes real memory only where it is touched, so
the operands of a large launch cost nothing as long as few of its blocks are executed.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from .registers import WARP, Array, SassError

FIRST_ADDRESS = 1 << 40
RESERVED = 1 << 34  # addresses, in bytes
ALIGNMENT = 512
SECTOR = 32  # bytes of an access to L2 or DRAM
LINE = 128
BANKS = 32  # of shared memory, 4 bytes wide
NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux
FILLED_AT_MOST = 1 << 28  # larger arrays stay 0: only few blocks of their launches are executed


class Traffic(NamedTuple):
    """What one access of each warp costs; each an array [warps]."""

    wavefronts: Array  # passes through the shared memory, or lines looked up in L1
    cached: Array  # sectors that the block has had before
    l2: Array  # sectors from L2 or to it
    dram: Array  # and those of them that go on to DRAM


@dataclass(frozen=True)
class Region:
    """An array in device memory."""

    name: str
    address: int
    dtype: str
    bytes: int


class GlobalMemory:
    """Arrays by name, aligned as an allocator aligns them. Accesses are checked for bounds."""

    def __init__(self) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
        self._bytes = np.frombuffer(mmap.mmap(-1, RESERVED, flags=flags), np.uint8)
        self._seen = np.frombuffer(mmap.mmap(-1, RESERVED // SECTOR, flags=flags), np.uint8)
        self._views = {n: self._bytes.view(np.dtype(f"u{n}")) for n in (1, 2, 4, 8)}
        self._used = 0
        self._seen_sectors: list[Array] = []
        self.regions: dict[str, Region] = {}
        self._in_dram: list[tuple[int, int]] = []  # from and to, in sectors

    def allocate(self, name: str, dtype: str, size: int, in_dram: bool) -> int:
        """The address of an array of `size` bytes, the same when it is asked for again."""
        known = self.regions.get(name)
        if known:
            if known.bytes != size:
                raise SassError(f"{name} has {known.bytes} bytes, not {size}")
            return known.address
        start = self._used
        self._used += -(-size // ALIGNMENT) * ALIGNMENT + ALIGNMENT
        if self._used > RESERVED:
            raise SassError("the arrays of a case take more memory than the model has")
        self.regions[name] = Region(name, FIRST_ADDRESS + start, dtype, size)
        if in_dram:
            self._in_dram.append((start // SECTOR, -(-(start + size) // SECTOR)))
        return FIRST_ADDRESS + start

    def array(self, name: str, dtype: Any) -> Array:
        """An array's contents, to be read or set."""
        region = self.regions[name]
        start = region.address - FIRST_ADDRESS
        return self._bytes[start : start + region.bytes].view(dtype)

    def fill(self, address: int, byte: int, count: int) -> None:
        """What cudaMemset does."""
        self._indices(np.array([address, address + count - 1], np.uint64), 1)
        self._bytes[address - FIRST_ADDRESS : address - FIRST_ADDRESS + count] = byte

    def _indices(self, addresses: Array, size: int) -> Array:
        offsets = addresses.astype(np.int64) - FIRST_ADDRESS
        if offsets.size and (offsets.min() < 0 or offsets.max() + size > self._used):
            raise SassError("access outside of all arrays")
        if (offsets % size).any():
            raise SassError(f"access to {size} bytes that is not aligned")
        return offsets // size

    def load(self, addresses: Array, size: int) -> Array:
        """`size` <= 8 bytes at each address."""
        loaded: Array = self._views[size][self._indices(addresses, size)]
        return loaded

    def store(self, addresses: Array, values: Array, size: int) -> None:
        self._views[size][self._indices(addresses, size)] = values

    def forget_accesses(self) -> None:
        """Before another block: what it accesses comes from L2 or DRAM again."""
        for sectors in self._seen_sectors:
            self._seen[sectors] = 0
        self._seen_sectors = []

    def traffic(self, addresses: Array, size: int, warp: Array, warps: int) -> Traffic:
        """The cost of an access by lanes of the warps `warp`."""
        self._indices(addresses, size)
        sectors = (addresses.astype(np.int64) - FIRST_ADDRESS) // SECTOR
        distinct = np.unique((warp.astype(np.int64) << 48) | sectors)
        owner, sectors = distinct >> 48, distinct & ((1 << 48) - 1)
        lines = np.unique((owner << 48) | (sectors // (LINE // SECTOR))) >> 48
        new = self._seen[sectors] == 0
        _, first = np.unique(sectors, return_index=True)  # two warps may want the same sector
        is_first = np.zeros(len(sectors), bool)
        is_first[first] = True
        new &= is_first
        fresh = sectors[new]
        self._seen[fresh] = 1
        self._seen_sectors.append(fresh)
        dram = np.zeros(len(sectors), bool)
        for start, end in self._in_dram:
            dram |= new & (sectors >= start) & (sectors < end)

        def per_warp(owners: Array) -> Array:
            return np.bincount(owners, minlength=warps)

        return Traffic(
            per_warp(lines), per_warp(owner[~new]), per_warp(owner[new]), per_warp(owner[dram])
        )


class SharedMemory:
    """The shared memory of one block. Accesses are checked for bounds and alignment."""

    def __init__(self, size: int) -> None:
        self._bytes = np.zeros(-(-size // 16) * 16, np.uint8)
        self._views = {n: self._bytes.view(np.dtype(f"u{n}")) for n in (1, 2, 4, 8)}
        self._size = size
        self._wavefronts: dict[bytes, int] = {}

    def _indices(self, addresses: Array, size: int) -> Array:
        if addresses.size and int(addresses.max()) + size > self._size:
            raise SassError("access outside of shared memory")
        if (addresses % size).any():
            raise SassError(f"access to {size} bytes of shared memory that is not aligned")
        return addresses // size

    def load(self, addresses: Array, size: int) -> Array:
        loaded: Array = self._views[size][self._indices(addresses, size)]
        return loaded

    def store(self, addresses: Array, values: Array, size: int) -> None:
        self._views[size][self._indices(addresses, size)] = values

    def wavefronts(self, addresses: Array, size: int, active: Array) -> Array:
        """Passes of one access [warps, 32] for each warp."""
        self._indices(addresses[active], size)
        return np.array(
            [
                self._of_warp(row, size, lanes) if lanes.any() else 0
                for row, lanes in zip(addresses, active, strict=True)
            ]
        )

    def _of_warp(self, addresses: Array, size: int, active: Array) -> int:
        first = int(addresses[active][0])
        shifted = np.where(active, addresses.astype(np.int64) - (first - first % 4), -1)
        key = shifted.tobytes() + active.tobytes() + bytes([size])
        known = self._wavefronts.get(key)
        if known is None:
            known = self._wavefronts[key] = wavefronts_of(addresses, size, active)
        return known


def wavefronts_of(addresses: Array, size: int, active: Array) -> int:
    """Passes of one warp's access to shared memory.

    A pass serves each bank once, all lanes that want its word. Lanes go together in halves of the
    warp for 8 bytes and in quarters for 16, in twice as many where pairs of lanes share addresses.
    """
    lanes = WARP if size <= 4 else WARP // 2 if size == 8 else WARP // 4
    total = 0
    for start in range(0, WARP, min(2 * lanes, WARP)):
        both = slice(start, start + min(2 * lanes, WARP))
        if lanes == WARP or _pairs_share(addresses[both], active[both]):
            total += _passes(addresses[both], size, active[both])
        else:
            for first in (start, start + lanes):
                part = slice(first, first + lanes)
                total += _passes(addresses[part], size, active[part])
    return total


def _pairs_share(addresses: Array, active: Array) -> bool:
    lanes = np.arange(len(addresses))
    return any(
        bool(((addresses == addresses[lanes ^ bit]) | ~active | ~active[lanes ^ bit]).all())
        for bit in (1, 2)
    )


def _passes(addresses: Array, size: int, active: Array) -> int:
    """The most different words that one bank is asked for."""
    wanted = addresses[active].astype(np.int64) // 4
    words = np.unique((wanted[:, None] + np.arange(max(size // 4, 1))).ravel())
    return int(np.bincount(words % BANKS).max()) if words.size else 0
