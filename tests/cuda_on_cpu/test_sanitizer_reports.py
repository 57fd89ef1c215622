"""What gpu/test_compute_sanitizer.py makes of a report: with a stand-in for the tool, emulated."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from support.compute_sanitizer import SUMMARIES, TOOLS, assert_clean

from cuda_on_cpu import build, runner
from cuda_on_cpu.runner import TOOL_ERROR_STATUS, CheckedWorker, KernelFault


def stand_in(
    tool: str, folder: Path, monkeypatch: pytest.MonkeyPatch, said: str, status: int = 0
) -> CheckedWorker:
    """A worker under a script that says `said` in the log, runs the worker, exits with `status`."""
    script = folder / "compute-sanitizer"
    script.write_text(
        "#!/bin/sh -e\n"
        f'test "$1 $2 $3 $5 $6" = "--tool {tool} --log-file --error-exitcode {TOOL_ERROR_STATUS}"\n'
        f'"$7"\nprintf "{said}" > "$4"\nexit {status}\n'
    )
    script.chmod(0o755)
    for counter in ("calls", "launches"):  # which the summary takes for a GPU's
        monkeypatch.setattr(runner, counter, Counter())
    emulated = build.worker("plain")
    monkeypatch.setattr(build, "worker", lambda variant: emulated)
    monkeypatch.setattr(build, "cuda_tool", lambda name: str(script))
    return CheckedWorker(tool, folder)


def draw(worker: CheckedWorker) -> None:
    state, words = np.array([3, 0], np.uint64), np.zeros((2, 5), np.uint32)
    assert worker.call("draw_packed", state, 0, 0.5, 16, 0, 2, 130, words, 1) == 0


def log_of(*lines: str) -> str:
    return "".join(f"========= {line}\\n" for line in ("COMPUTE-SANITIZER", *lines))


@pytest.mark.parametrize("tool", TOOLS)
def test_a_clean_report_passes(tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = stand_in(tool, tmp_path, monkeypatch, log_of(SUMMARIES[tool]))
    draw(worker)
    assert_clean(worker)
    assert runner.calls == {tool: 2}
    draw(worker)  # in another process
    worker.close()


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (log_of("Error: Device not supported", SUMMARIES["memcheck"]), 0),
        (log_of("Internal Sanitizer Warning", SUMMARIES["memcheck"]), 0),
        (log_of("ERROR SUMMARY: 3 errors"), TOOL_ERROR_STATUS),
        (log_of(SUMMARIES["memcheck"]), 1),
        (log_of(), 0),
        ("", 0),
    ],
)
def test_any_other_report_fails(
    said: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = stand_in("memcheck", tmp_path, monkeypatch, said, status)
    with pytest.raises(AssertionError):
        assert_clean(worker)


def test_a_tool_that_refuses_the_device_is_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "worker", lambda variant: tmp_path / "no worker")
    script = tmp_path / "compute-sanitizer"
    script.write_text('#!/bin/sh\nprintf "========= Device not supported\\n" > "$4"\nexit 1\n')
    script.chmod(0o755)
    monkeypatch.setattr(build, "cuda_tool", lambda name: str(script))
    with pytest.raises(KernelFault, match="Device not supported\nexit status 1"):
        CheckedWorker("memcheck", tmp_path)


def test_a_worker_that_hangs_is_killed_with_its_tool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = stand_in("memcheck", tmp_path, monkeypatch, log_of(), 0)
    script = tmp_path / "compute-sanitizer"
    worker.finish()
    script.write_text("#!/bin/sh\nsleep 60\n")
    monkeypatch.setattr(runner, "TIMEOUT_S", 0.2)
    with pytest.raises(KernelFault, match="killed"):
        worker.call("nothing")
