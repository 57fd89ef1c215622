"""One block of a launch: its threads' registers, its memory, and a record of what its warps do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .cubin import KernelInfo
from .memory import GlobalMemory, SharedMemory, Traffic
from .registers import WARP, Array, Registers, SassError

Dim3 = tuple[int, int, int]

# Where the system puts the sizes of a launch in constant bank 0.
_BLOCK_AT, _GRID_AT = 0x0, 0xC


class Launch(NamedTuple):
    """What stands between <<< and >>>, and the bytes of the arguments."""

    kernel: KernelInfo
    grid: Dim3
    block: Dim3
    dynamic_shared: int
    arguments: tuple[bytes, ...]

    @property
    def blocks(self) -> int:
        return int(np.prod(self.grid))

    @property
    def warps(self) -> int:
        return -(-int(np.prod(self.block)) // WARP)

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block, with what the system reserves."""
        return self.kernel.shared + self.dynamic_shared


@dataclass
class Trace:
    """What the warps of a block have executed.

    Runs of instructions come one after another, each by the warps that took part. Accesses to
    memory come in the order of the instructions that make them.
    """

    runs: list[tuple[int, int, Array]] = field(default_factory=list)  # first, behind the last
    accesses: list[Traffic] = field(default_factory=list)


class Block(Registers):
    """`number` counts the blocks of a launch, x fastest."""

    def __init__(self, launch: Launch, number: int, memory: GlobalMemory) -> None:
        super().__init__(launch.warps, constants_of(launch))
        self.memory = memory
        self.shared = SharedMemory(launch.shared)
        self.trace = Trace()
        self.threads = int(np.prod(launch.block))
        thread = np.arange(launch.warps * WARP).reshape(launch.warps, WARP)
        self.exists = thread < self.threads
        self.special = {"SR_LANEID": (thread % WARP).astype(np.uint32)}
        for axis, sizes in zip("XYZ", zip(launch.block, launch.grid, strict=True), strict=True):
            self.special[f"SR_TID.{axis}"] = (thread % sizes[0]).astype(np.uint32)
            self.special[f"SR_CTAID.{axis}"] = np.full((1, 1), number % sizes[1], np.uint32)
            thread, number = thread // sizes[0], number // sizes[1]
        self.special["SR_CgaCtaId"] = np.zeros((1, 1), np.uint32)
        bits = np.uint32(1) << np.arange(WARP, dtype=np.uint32)[None, :]
        self.special["SR_EQMASK"], self.special["SR_LTMASK"] = bits, bits - np.uint32(1)
        self.warp_numbers = np.broadcast_to(np.arange(launch.warps)[:, None], (launch.warps, WARP))

    def record_global(self, addresses: Array, size: int, is_store: bool) -> None:
        """Addresses of the active lanes."""
        warps = self.warp_numbers[self.active]
        traffic = self.memory.traffic(addresses, size, warps, self.warps)
        if is_store:  # L1 writes everything through
            traffic = traffic._replace(l2=traffic.l2 + traffic.cached, cached=0 * traffic.cached)
        self.trace.accesses.append(traffic)

    def record_shared(self, addresses: Array, size: int) -> None:
        """Addresses of all lanes."""
        none = np.zeros(self.warps, np.int64)
        wavefronts = self.shared.wavefronts(addresses, size, self.active)
        self.trace.accesses.append(Traffic(wavefronts, none, none, none))

    def record_nothing(self) -> None:
        """An instruction that accesses memory, but in no lane of any warp."""
        none = np.zeros(self.warps, np.int64)
        self.trace.accesses.append(Traffic(none, none, none, none))


def constants_of(launch: Launch) -> dict[int, bytes]:
    """The constant banks: sizes, arguments, and the kernel's own constants."""
    kernel = launch.kernel
    size = max((p.offset + p.size for p in kernel.parameters), default=0)
    bank = bytearray(kernel.constants.get(0, b"").ljust(kernel.parameters_at + size, b"\0"))
    for at, sizes in ((_BLOCK_AT, launch.block), (_GRID_AT, launch.grid)):
        bank[at : at + 12] = b"".join(size.to_bytes(4, "little") for size in sizes)
    if len(launch.arguments) != len(kernel.parameters):
        raise SassError(f"{kernel.name} takes {len(kernel.parameters)} arguments")
    for parameter, argument in zip(kernel.parameters, launch.arguments, strict=True):
        start = kernel.parameters_at + parameter.offset
        bank[start : start + parameter.size] = argument
    return {**kernel.constants, 0: bytes(bank)}
