"""Runs calls in child processes, so that a crash or a hang is found and blamed on its call.

The heap is checked by glibc's malloc (MALLOC_CHECK_), which aborts the process at the first block
freed whose end was written over, and fills what it hands out (MALLOC_PERTURB_), so that no result
that was never written looks right.
"""

from __future__ import annotations

import ctypes
import gc
import json
import mmap
import os
import resource
import select
import signal
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

LIBRARY = "libc_malloc_debug.so.0"  # glibc 2.34 and newer check only with it
_READY = "HOSTILE_CALLS_MALLOC"
_SUSPECTS = 40  # calls before a crash that are tried again alone
_REPEATS = 10  # of a suspect
_SPARE_MEMORY = 3 << 30

Run = Callable[[int], tuple[str, str]]  # the number of a call in, outcome and details out


class Report(NamedTuple):
    """What came of a call."""

    number: int
    outcome: str
    details: str


def with_checked_malloc(perturb: int, program: list[str]) -> None:
    """Starts this program again with a malloc that checks, unless it runs with one."""
    if os.environ.get(_READY) == str(perturb) or not sys.platform.startswith("linux"):
        return
    environment = {
        **os.environ,
        "LD_PRELOAD": f"{LIBRARY} {os.environ.get('LD_PRELOAD', '')}".strip(),
        "MALLOC_CHECK_": "3",
        "MALLOC_PERTURB_": str(perturb),
        _READY: str(perturb),
    }
    os.execve(sys.executable, [sys.executable, *program], environment)


def heap_is_checked() -> bool:
    """Whether one byte written past the end of a tensor aborts the process."""

    def overwrite(number: int) -> tuple[str, str]:
        import torch

        tensor = torch.empty(25)
        ctypes.memset(tensor.data_ptr() + 100, 7, 1)
        del tensor
        return "survived", ""

    reports = list(_run_in_child(overwrite, [0], 60.0))
    return reports[0].outcome == f"!killed by {signal.SIGABRT.name}"


def run_all(run: Run, numbers: Iterable[int], processes: int, limit_s: float) -> Iterator[Report]:
    """The reports of all calls, in no order."""
    batches = _batches(list(numbers), 250)
    children: list[_Child] = []
    rests: list[list[int]] = []  # of batches whose process ended too early
    try:
        while True:
            while len(children) < processes:
                batch = rests.pop() if rests else next(batches, None)
                if batch is None:
                    break
                children.append(_Child.start(run, batch))
            if not children:
                return
            for child in _wait(children, limit_s):
                yield from child.read()
                if not child.ended:
                    continue
                children.remove(child)
                if child.status != 0:
                    if rest := child.rest():
                        rests.append(rest)
                    yield _blame(run, child.numbers, child.at(), child.cause(limit_s), limit_s)
    finally:
        for child in children:
            os.kill(child.process, signal.SIGKILL)
            os.waitpid(child.process, 0)


def _batches(numbers: list[int], size: int) -> Iterator[list[int]]:
    for first in range(0, len(numbers), size):
        yield numbers[first : first + size]


def _run_in_child(run: Run, numbers: list[int], limit_s: float) -> Iterator[Report]:
    """The reports of these calls in one child, the last of them of what ended it too early."""
    child = _Child.start(run, numbers)
    while not child.ended:
        for ready in _wait([child], limit_s):
            yield from ready.read()
    if child.status != 0:
        yield Report(child.at(), child.cause(limit_s), "")


def _blame(run: Run, numbers: list[int], number: int, cause: str, limit_s: float) -> Report:
    """The call that crashes by itself, of those up to where the process ended."""
    position = numbers.index(number)
    for suspect in reversed(numbers[max(0, position - _SUSPECTS) : position + 1]):
        for report in _run_in_child(run, [suspect] * _REPEATS, limit_s):
            if report.outcome.startswith(("!killed", "!hangs", "!exit")):
                return Report(suspect, report.outcome, f"found when the process was at {number}")
    return Report(number, cause, "no call crashes alone: this one, or one shortly before it")


@dataclass
class _Child:
    numbers: list[int]
    process: int
    pipe: int
    place: mmap.mmap  # the index of the call that runs, which outlives the child
    text: bytes = b""
    status: int = 0
    ended: bool = False
    last: tuple[int, float] = (-1, 0.0)
    hung: bool = False

    @staticmethod
    def start(run: Run, numbers: list[int]) -> _Child:
        place = mmap.mmap(-1, 8)
        reading, writing = os.pipe()
        sys.stdout.flush()
        process = os.fork()
        if process == 0:
            os.close(reading)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # malloc's last words
            _work(run, numbers, writing, place)
        os.close(writing)
        return _Child(numbers, process, reading, place, last=(-1, time.monotonic()))

    def read(self) -> list[Report]:
        block = os.read(self.pipe, 1 << 16)
        if not block:
            self.status = os.waitpid(self.process, 0)[1]
            self.ended = True
            os.close(self.pipe)
            return []
        *lines, self.text = (self.text + block).split(b"\n")
        return [Report(*json.loads(line)) for line in lines]

    def index(self) -> int:
        return int(struct.unpack("q", self.place[:8])[0])

    def at(self) -> int:
        return self.numbers[self.index()]

    def rest(self) -> list[int]:
        return self.numbers[self.index() + 1 :]

    def kill_if_it_hangs(self, limit_s: float) -> None:
        now = time.monotonic()
        if self.index() != self.last[0]:
            self.last = (self.index(), now)
        elif now - self.last[1] > limit_s and not self.hung:
            self.hung = True
            os.kill(self.process, signal.SIGKILL)

    def cause(self, limit_s: float) -> str:
        if self.hung:
            return f"!hangs for {limit_s:g} s"
        if os.WIFSIGNALED(self.status):
            return f"!killed by {signal.Signals(os.WTERMSIG(self.status)).name}"
        return f"!exit status {os.WEXITSTATUS(self.status)}"


def _wait(children: list[_Child], limit_s: float) -> list[_Child]:
    """The children that have something to read; those that hang are killed."""
    ready = select.select([child.pipe for child in children], [], [], 1.0)[0]
    for child in children:
        child.kill_if_it_hangs(limit_s)
    return [child for child in children if child.pipe in ready]


def _work(run: Run, numbers: list[int], writing: int, place: mmap.mmap) -> None:
    status = 1
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.SIG_DFL)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        size = pages * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + _SPARE_MEMORY,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for index, number in enumerate(numbers):
            place[:8] = struct.pack("q", index)
            line = json.dumps((number, *run(number))) + "\n"
            os.write(writing, line.encode())
            if index % 50 == 49:
                gc.collect()
        status = 0
    finally:
        os._exit(status)
