"""What compute-sanitizer's reports say."""

from __future__ import annotations

from cuda_on_cpu.runner import CheckedWorker

TOOLS = ("memcheck", "racecheck")
SUMMARIES = {
    "memcheck": "ERROR SUMMARY: 0 errors",
    "racecheck": "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
}


def assert_clean(checked: CheckedWorker) -> None:
    """The whole report is the tool's name and its count of nothing: not even a remark."""
    report = checked.finish()
    lines = [line.strip("= ") for line in report.splitlines()]
    found = [line for line in lines if line]
    assert found == ["COMPUTE-SANITIZER", SUMMARIES[checked.mode], "exit status 0"], report
