"""Fixtures that run kernels in every mode, and what they have run, in pytest's summary."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from . import build
from .runner import EMULATED, MODES, CheckedWorker, Unavailable, Worker, calls, launches

# Set where a GPU must be there: tests that need one then fail without it.
GPU_REQUIRED = bool(os.environ.get("FUSED_DROPOUT_REQUIRE_CUDA"))
# Set where the kernels run on a GPU alone: tests of the emulator are then left out.
GPU_ONLY = bool(os.environ.get("FUSED_DROPOUT_KERNELS_ON_GPU_ONLY"))
ON_GPU = [mode for mode in MODES if mode not in EMULATED]
tests_run: set[str] = set()


def start_worker(mode: str) -> Iterator[Worker]:
    try:
        worker = Worker(mode)
    except Unavailable as error:
        if mode in ON_GPU:
            pytest.fail(str(error))
        pytest.skip(str(error))
    yield worker
    worker.close()


def device_modes() -> list[str]:
    if GPU_ONLY:
        return ["gpu"]
    gpu_is_here = build.gpu_obstacle() is None
    return [*EMULATED, "gpu"] if gpu_is_here or GPU_REQUIRED else [*EMULATED]


@pytest.fixture(params=EMULATED, scope="session")
def emulator(request: pytest.FixtureRequest) -> Iterator[Worker]:
    """Runs the test once per emulated mode: three schedules, ASan with UBSan, and TSan."""
    yield from start_worker(request.param)


@pytest.fixture(params=device_modes(), scope="session")
def device(request: pytest.FixtureRequest) -> Iterator[Worker]:
    """The same, and once on a GPU where there is one."""
    yield from start_worker(request.param)


@pytest.fixture
def checked(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CheckedWorker]:
    """A GPU under the tool of compute-sanitizer that the test's parameter names."""
    obstacle = build.gpu_obstacle()
    if not obstacle and not build.cuda_tool("compute-sanitizer"):
        obstacle = "no compute-sanitizer, neither on PATH nor in CUDA_HOME"
    if obstacle and GPU_REQUIRED:
        pytest.fail(f"FUSED_DROPOUT_REQUIRE_CUDA is set, but: {obstacle}")
    if obstacle:
        pytest.skip(f"compute-sanitizer cannot run here: {obstacle}")
    worker = CheckedWorker(request.param, tmp_path)
    yield worker
    worker.close()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not GPU_ONLY:
        return
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        emulated = "emulator" in getattr(item, "fixturenames", ())
        (left_out if emulated else kept).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept


def pytest_runtest_call(item: pytest.Item) -> None:
    if {"emulator", "device", "checked"} & set(getattr(item, "fixturenames", ())):
        tests_run.add(item.nodeid)


OUTPUT = "kernels"  # what a process of pytest-xdist tells the one that prints the summary


def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)  # only those processes have one
    if output is not None:
        output[OUTPUT] = [sorted(tests_run), dict(launches), dict(calls)]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A process of pytest-xdist has ended; one that has crashed leaves nothing."""
    tests, its_launches, its_calls = getattr(node, "workeroutput", {}).get(OUTPUT, ([], {}, {}))
    tests_run.update(tests)
    launches.update(its_launches)
    calls.update(its_calls)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not tests_run:
        return
    emulated = ", ".join(f"{mode} {count}" for mode, count in launches.items() if count)
    on_gpu = ", ".join(f"{mode} {calls[mode]}" for mode in ON_GPU if calls[mode])
    terminalreporter.section("CUDA kernels on raw memory")
    terminalreporter.line(
        f"{len(tests_run)} kernel tests, {sum(launches.values())} kernel launches emulated"
        f" ({emulated or 'none'})"
    )
    terminalreporter.line(f"calls on a GPU: {on_gpu or 'none'}")
