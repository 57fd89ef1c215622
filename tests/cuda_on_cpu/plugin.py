"""Fixtures that run kernels in every mode, and what they have run, in pytest's summary."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Iterator

import pytest

from .runner import EMULATED, Unavailable, Worker, launches

tests_run: set[str] = set()


@functools.cache
def gpu_is_here() -> bool:
    """Whether kernels can be compiled and run on a GPU."""
    if not shutil.which("nvcc") or not shutil.which("nvidia-smi"):
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0


def start_worker(mode: str) -> Iterator[Worker]:
    try:
        worker = Worker(mode)
    except Unavailable as error:
        pytest.skip(str(error))
    yield worker
    worker.close()


@pytest.fixture(params=EMULATED, scope="session")
def emulator(request: pytest.FixtureRequest) -> Iterator[Worker]:
    """Runs the test once per emulated mode: three schedules, ASan with UBSan, and TSan."""
    yield from start_worker(request.param)


@pytest.fixture(params=[*EMULATED, "gpu"] if gpu_is_here() else EMULATED, scope="session")
def device(request: pytest.FixtureRequest) -> Iterator[Worker]:
    """The same, and once on a GPU where there is one."""
    yield from start_worker(request.param)


def pytest_runtest_call(item: pytest.Item) -> None:
    if {"emulator", "device"} & set(getattr(item, "fixturenames", ())):
        tests_run.add(item.nodeid)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not tests_run:
        return
    modes = ", ".join(f"{mode} {count}" for mode, count in launches.items() if count)
    terminalreporter.section("CUDA kernels run on the CPU")
    terminalreporter.line(
        f"{len(tests_run)} kernel tests, {sum(launches.values())} kernel launches ({modes})"
    )
