"""Cases, goals and the tables of bench/kernel_report.py --model."""

from __future__ import annotations

import re

import pytest
from kernel_model import goals
from kernel_model.cases import CASES, chosen
from kernel_model.goals import GOALS, PASSES, Goal, goal_of
from kernel_model.predict import predict
from support.bench_scripts import script

report = script("kernel_report")
QUICK = "packed bits p=0.5"


def test_every_case_has_a_goal_and_every_goal_a_case() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert all(goal_of(case).launches and goal_of(case).slots for case in CASES)
    used = {goal_of(case) for case in CASES}
    assert used == set(GOALS)
    for one in PASSES:
        assert set(one.cases) <= set(names)


def test_cases_are_chosen_by_words() -> None:
    assert {case.name for case in chosen(["d_weight", "p=0.1"])} == {
        "dropconnect d_weight 128x1024x1024 p=0.1",
        "dropconnect d_weight 512x4096x4096 p=0.1",
    }
    assert chosen([]) == list(CASES)
    assert report.main(["--model", "no such case"]) == 2


@pytest.mark.usefixtures("tools")
def test_a_prediction() -> None:
    (case,) = chosen([QUICK])
    one = predict(case)
    (launch,) = one.launches
    assert launch.ffma == launch.main_slots == 0
    assert 0.05 < one.share < 1
    # A lane draws 128 bits at a time.
    assert 0.3 < one.slots_per_unit < 2
    assert one.seconds > one.kernel_seconds > case.floor_seconds
    assert one.main.dram_bytes == pytest.approx(2**28 / 8, rel=0.05)


@pytest.mark.usefixtures("tools")
def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert report.main(["--model", QUICK]) == 0
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert QUICK in said and "draw_groups_kernel" in said
    for figure in ("share", "time", "cycles"):
        assert f"predicted {figure}" in said
    assert "no GPU has calibrated" in said


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize(
    ("goal", "said"),
    [
        (Goal("packed", launches=1, slots=0.01), "slots, the goal is at most 0.01"),
        (Goal("packed", launches=1, share=0.99), ""),
    ],
)
def test_missed_goals(
    goal: Goal, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of counts they fail the report; of predicted shares they are shown."""
    monkeypatch.setattr(goals, "GOALS", (goal,))
    assert report.main(["--model", QUICK]) == (1 if said else 0)
    printed = capsys.readouterr().out
    missed = [line for line in printed.splitlines() if line.startswith("missed")]
    assert bool(missed) == bool(said)
    assert said in (missed or [""])[0]
    assert ("goal 0.99" in printed) == (not said)


@pytest.mark.usefixtures("tools")
def test_shared_memory_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = chosen(["dropconnect forward 128x1024x1024 p=0.5 stored"])
    one = predict(case)
    assert one.shared_bytes <= goals.SHARED_BYTES
    assert goals.misses(one) == []
    monkeypatch.setattr(goals, "SHARED_BYTES", one.shared_bytes - 1)
    assert "bytes of shared memory" in goals.misses(one)[0]
