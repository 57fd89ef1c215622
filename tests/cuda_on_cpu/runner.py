"""Calls CUDA kernels in a worker process (worker.cpp): emulated in five modes, or on a GPU."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
from collections import Counter
from typing import IO, NamedTuple

import numpy as np

from . import build

FORWARD, REVERSE, RANDOM = range(3)


class Mode(NamedTuple):
    """What runs the kernels, and in which order."""

    variant: str
    order: int


MODES = {
    "forward": Mode("plain", FORWARD),
    "reverse": Mode("plain", REVERSE),
    "random": Mode("plain", RANDOM),
    "asan": Mode("asan", FORWARD),
    "tsan": Mode("tsan", FORWARD),
    "gpu": Mode("gpu", FORWARD),
}
EMULATED = tuple(mode for mode in MODES if mode != "gpu")
SEED = 1  # of the random schedule
TIMEOUT_S = 120.0  # of one call

SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:exitcode=66",
    "UBSAN_OPTIONS": "print_stacktrace=1:exitcode=66",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:report_thread_leaks=0:atexit_sleep_ms=0",
}

launches: Counter[str] = Counter()  # kernels run so far, by mode


class KernelFault(Exception):
    """A kernel did what it must not; the message is the report of whoever noticed."""


class Misaligned(NamedTuple):
    """An array whose device memory starts `offset` bytes past an aligned address."""

    array: np.ndarray
    offset: int


Argument = int | float | np.ndarray | Misaligned


class Unavailable(RuntimeError):
    """This machine cannot run a mode; the message says why."""


def as_misaligned(argument: Argument) -> Misaligned | None:
    """The argument if it is an array of either kind."""
    if isinstance(argument, np.ndarray):
        return Misaligned(argument, 0)
    return argument if isinstance(argument, Misaligned) else None


def pack(argument: Argument) -> bytes:
    """An argument as worker.cpp reads it."""
    if isinstance(argument, float):
        return struct.pack("<cd", b"d", argument)
    if isinstance(argument, int):
        return b"i" + (argument % 2**64).to_bytes(8, "little")
    buffer = as_misaligned(argument)
    if not buffer:
        raise TypeError(f"kernels take ints, floats and arrays, got {type(argument).__name__}")
    content = buffer.array.tobytes()
    return struct.pack("<cQQ", b"b", buffer.offset, len(content)) + content


class Worker:
    """A mode's worker process. A fault ends the process; the next call starts another."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.variant, self.order = MODES[mode]
        self.process: subprocess.Popen[bytes] | None = None
        self.stderr: IO[bytes] | None = None
        self.prefix: list[str] = []
        self.seen_launches = 0
        try:
            self.program = build.worker(self.variant)
        except build.SanitizerMissing as error:
            raise Unavailable(f"the compiler lacks the {self.variant} library: {error}") from None
        self._make_sure_it_starts()

    def call(self, name: str, *arguments: Argument) -> int:
        """Calls entry `name` and returns its result. Arrays come back changed in place.

        Raises KernelFault with the emulator's or the sanitizer's report.
        """
        request = struct.pack("<I", len(name)) + name.encode()
        request += struct.pack("<iQI", self.order, SEED, len(arguments))
        request += b"".join(map(pack, arguments))
        process = self.process or self._start()
        watchdog = threading.Timer(TIMEOUT_S, process.kill)
        watchdog.start()
        try:
            status = self._exchange(process, request, arguments)
        except (EOFError, BrokenPipeError):
            raise KernelFault(self._post_mortem()) from None
        finally:
            watchdog.cancel()
        return status

    def close(self) -> None:
        """Ends the worker."""
        if self.process and self.process.stdin and self.process.stdout:
            with contextlib.suppress(BrokenPipeError):  # what was left to say to a dead process
                self.process.stdin.close()
            self.process.wait()
            self.process.stdout.close()
        if self.stderr:
            self.stderr.close()
        self.process = self.stderr = None

    def _exchange(
        self, process: subprocess.Popen[bytes], request: bytes, arguments: tuple[Argument, ...]
    ) -> int:
        assert process.stdin
        process.stdin.write(request)
        process.stdin.flush()
        status, count = struct.unpack("<iQ", self._read(process, 12))
        launches[self.mode] += count - self.seen_launches
        self.seen_launches = count
        buffers = list(filter(None, map(as_misaligned, arguments)))
        contents = [self._read(process, buffer.array.nbytes) for buffer in buffers]
        for (array, _), content in zip(buffers, contents, strict=True):
            if array.flags.writeable:
                array[...] = np.frombuffer(content, array.dtype).reshape(array.shape)
            elif content != array.tobytes():
                raise KernelFault("a kernel has written to an array that is not writeable")
        return int(status)

    @staticmethod
    def _read(process: subprocess.Popen[bytes], size: int) -> bytes:
        assert process.stdout
        content = process.stdout.read(size)
        if len(content) < size:
            raise EOFError
        return content

    def _start(self) -> subprocess.Popen[bytes]:
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self.process = subprocess.Popen(
            [*self.prefix, str(self.program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            env={**os.environ, **SANITIZER_OPTIONS},
        )
        self.seen_launches = 0
        return self.process

    def _post_mortem(self) -> str:
        """What the process, which has ended, left behind."""
        assert self.process and self.stderr
        code = self.process.wait()
        self.stderr.seek(0)
        report = self.stderr.read().decode(errors="replace")
        self.close()
        if code == -signal.SIGKILL:
            return f"{report}killed, perhaps after {TIMEOUT_S} seconds"
        return f"{report}exit status {code}" if code >= 0 else f"{report}killed by signal {-code}"

    def _make_sure_it_starts(self) -> None:
        """Some sanitizers cannot bear how far some kernels scatter addresses."""
        setarch = shutil.which("setarch")
        report = ""
        for prefix in [[], [setarch, "--addr-no-randomize"]] if setarch else [[]]:
            self.prefix = [part for part in prefix if part]
            try:
                self.call("nothing")
                return
            except KernelFault as fault:
                report = str(fault)
        raise Unavailable(f"the {self.variant} build does not start here: {report}")
