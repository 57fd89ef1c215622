"""Calls CUDA kernels in a worker process (worker.cpp): emulated in five modes, or on a GPU.

On a GPU the process can run under a tool of NVIDIA's compute-sanitizer, which watches what the
kernels do (CheckedWorker).
"""

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
from collections.abc import Iterator
from pathlib import Path
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
    "memcheck": Mode("gpu", FORWARD),
    "racecheck": Mode("gpu", FORWARD),
}
SEES_THE_END = ("asan", "memcheck")  # of an array: these report accesses just behind it
EMULATED = tuple(name for name, mode in MODES.items() if mode.variant != "gpu")
SEED = 1  # of the random schedule
TIMEOUT_S = 120.0  # of one call

SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:exitcode=66",
    "UBSAN_OPTIONS": "print_stacktrace=1:exitcode=66",
    "TSAN_OPTIONS": "halt_on_error=1:exitcode=66:report_thread_leaks=0:atexit_sleep_ms=0",
}

launches: Counter[str] = Counter()  # kernels run so far, by mode; a GPU does not count them
calls: Counter[str] = Counter()  # entries called so far, by mode


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

    own_session = False  # of processes that are killed together

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
        with self._time_limit(process):
            try:
                status = self._exchange(process, request, arguments)
            except (EOFError, BrokenPipeError):
                raise KernelFault(self._post_mortem()) from None
        calls[self.mode] += 1
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

    @contextlib.contextmanager
    def _time_limit(self, process: subprocess.Popen[bytes]) -> Iterator[None]:
        watchdog = threading.Timer(TIMEOUT_S, self._kill, [process])
        watchdog.start()
        try:
            yield
        finally:
            watchdog.cancel()

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()

    def _command(self) -> list[str]:
        return [*self.prefix, str(self.program)]

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
            self._command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.stderr,
            env={**os.environ, **SANITIZER_OPTIONS},
            start_new_session=self.own_session,
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


TOOL_ERROR_STATUS = 67  # what the tool makes of a process that it has found errors in


class CheckedWorker(Worker):
    """A worker on a GPU under compute-sanitizer; its mode is the tool, memcheck or racecheck.

    What the tool notices while a call runs may end the process (KernelFault), or stand only in the
    report that `finish` returns.
    """

    own_session = True

    def __init__(self, tool: str, folder: Path) -> None:
        self.log = folder / f"{tool}.txt"
        super().__init__(tool)

    def finish(self) -> str:
        """Ends the process; returns the tool's report, standard error and exit status, in lines."""
        process = self.process
        assert process and process.stdin, "nothing has been called"
        with self._time_limit(process):
            process.stdin.close()
            return self._post_mortem()

    def close(self) -> None:
        super().close()
        self.log.unlink(missing_ok=True)

    def _command(self) -> list[str]:
        sanitizer = build.cuda_tool("compute-sanitizer")
        assert sanitizer
        # Not on standard output, where the answers go.
        options = ["--log-file", str(self.log), "--error-exitcode", str(TOOL_ERROR_STATUS)]
        return [sanitizer, "--tool", self.mode, *options, str(self.program)]

    def _kill(self, process: subprocess.Popen[bytes]) -> None:
        """The tool and the worker, which is the tool's child and would hold the pipes open."""
        with contextlib.suppress(ProcessLookupError):  # already gone
            os.killpg(process.pid, signal.SIGKILL)

    def _post_mortem(self) -> str:
        assert self.process
        self.process.wait()
        log = self.log.read_text(errors="replace") if self.log.exists() else "no report\n"
        return log + super()._post_mortem()

    def _make_sure_it_starts(self) -> None:
        """Where the tool refuses the device, its message is the fault."""
        self.call("nothing")
