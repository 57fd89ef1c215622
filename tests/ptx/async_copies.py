"""cp.async: copies from global to shared memory that land when their thread waits for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .memory import POISON, Offsets
from .parse import PtxError

if TYPE_CHECKING:
    from .machine import Machine


@dataclass
class Copy:
    """One instruction's copies that are on their way, one per thread."""

    threads: Offsets
    group: Offsets  # how many groups each thread had closed before
    to: Offsets  # in shared memory
    data: NDArray[np.uint8]  # [threads, bytes]


class AsyncCopies:
    """The copies of all threads of a launch."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.closed_groups = np.zeros(machine.threads, np.int64)
        self.pending: list[Copy] = []

    def start(self, to: Offsets, source: Offsets, size: int, valid: Offsets) -> None:
        """Nobody may rely on the destination until the wait, so garbage goes there first."""
        if ((valid < 0) | (valid > size)).any():
            raise PtxError(f"cp.async of more than {size} bytes")
        machine = self.machine
        to = machine.place(to, "shared", size)[1]
        data = np.zeros((len(to), size), np.uint8)
        for row, (address, count) in enumerate(zip(source, valid, strict=True)):
            if count:
                data[row, :count] = machine.memory.read_bytes(int(address), int(count), size)
        threads = np.flatnonzero(machine.active)
        self.pending.append(Copy(threads, self.closed_groups[threads], to, data))
        machine.shared.bytes[to[:, None] + np.arange(size)] = POISON

    def commit(self) -> None:
        """Closes the active threads' group."""
        self.closed_groups[self.machine.active] += 1

    def wait(self, still_pending: int) -> None:
        """Lands all closed groups of the active threads but the newest `still_pending`."""
        machine = self.machine
        remaining = []
        for copy in self.pending:
            age = self.closed_groups[copy.threads] - copy.group
            lands = machine.active[copy.threads] & (age > still_pending)
            size = copy.data.shape[1]
            machine.shared.bytes[copy.to[lands][:, None] + np.arange(size)] = copy.data[lands]
            if not lands.all():
                rest = ~lands
                remaining.append(
                    Copy(copy.threads[rest], copy.group[rest], copy.to[rest], copy.data[rest])
                )
        self.pending = remaining
