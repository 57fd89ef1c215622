"""`fused-dropout bench --compare`: verdicts on made-up files, what is said, exit statuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.benchmarks import run_bench

from fused_dropout._tools.bench import command, compare, family
from fused_dropout._tools.bench.compare import (
    FASTER,
    NO_RATIO,
    ONLY_NEW,
    ONLY_OLD,
    SAME,
    SLOWER,
    Verdict,
    differences,
    print_verdicts,
    read_document,
)
from fused_dropout._tools.bench.devices import CPU
from fused_dropout._tools.bench.harness import OURS
from fused_dropout._tools.bench.op import BenchOp
from fused_dropout._tools.bench.sweeps import Point
from fused_dropout._tools.cli import main
from fused_dropout._tools.common import ArgumentError


def record(
    p20: float = 0.9, median: float = 1.0, p80: float = 1.1, **changed: Any
) -> dict[str, Any]:
    """One of our records, with this ratio to the floor."""
    return {
        "op": "dropout", "name": "fused_dropout", "role": "ours", "phase": "total", "device": "cpu",
        "shape": [2, 3], "memory_format": "contiguous", "options": {}, "dtype": "float32", "p": 0.5,
        "threads": 2, "isa": "avx2", "times_floor": {"median": median, "p20": p20, "p80": p80},
        **changed,
    }  # fmt: skip


def verdicts(old: list[dict[str, Any]], new: list[dict[str, Any]]) -> list[str]:
    return [found.verdict for found in compare.compare(old, new)]


@pytest.mark.parametrize(
    ("now", "verdict"),
    [
        ((0.9, 1.0, 1.1), SAME),
        ((1.11, 1.2, 1.3), SLOWER),
        ((1.09, 1.2, 1.3), SAME),  # the intervals overlap
        ((1.1, 1.2, 1.3), SAME),  # they touch
        ((0.7, 0.8, 0.89), FASTER),
        ((0.7, 0.8, 0.91), SAME),
        ((3.0, 30.0, 40.0), SLOWER),
    ],
)
def test_intervals_that_overlap_are_the_same(now: tuple[float, float, float], verdict: str) -> None:
    assert verdicts([record()], [record(*now)]) == [verdict]


@pytest.mark.parametrize(
    ("median", "verdict"), [(1.04, SAME), (1.06, SLOWER), (0.96, SAME), (0.94, FASTER)]
)
def test_five_percent_is_the_same(median: float, verdict: str) -> None:
    """However sharp the measurements are."""
    assert verdicts([record(1, 1, 1)], [record(median, median, median)]) == [verdict]


def test_records_are_matched_by_all_that_they_are_about() -> None:
    changes: list[dict[str, Any]] = [
        {"op": "dropout2d"}, {"phase": "forward"}, {"device": "cuda"}, {"shape": [3, 2]},
        {"memory_format": "channels_last"}, {"options": {"mask": "batch"}}, {"dtype": "float64"},
        {"p": 0.1}, {"p": None}, {"threads": 1}, {"isa": "avx512"},
    ]  # fmt: skip
    for change in changes:
        assert verdicts([record()], [record(**change)]) == [ONLY_NEW, ONLY_OLD]
        assert verdicts([record(), record(**change)], [record(**change)]) == [SAME, ONLY_OLD]
    assert verdicts([record(sweep="p", value=0.5)], [record(sweep=None, value=None)]) == [SAME]


def test_peers_and_floors_are_not_judged() -> None:
    others = [record(role="peer", name="torch"), record(role="floor", name="copy_")]
    assert verdicts(others, [{**r, "times_floor": None} for r in others]) == []


def test_a_record_without_a_ratio() -> None:
    without = record(times_floor=None)
    assert verdicts([record()], [without]) == verdicts([without], [record()]) == [NO_RATIO]


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    old = [record(), record(p=0.1), record(p=0.2)]
    new = [record(2, 2, 2), record(0.1, 0.1, 0.1, p=0.1), record(p=0.3)]
    print_verdicts(compare.compare(old, new), Path("old.json"), Console(width=150))
    said = capsys.readouterr().out
    assert "1 slower, 1 faster, 0 same, 0 no ratio, 1 only in OLD, 1 only in this run." in said
    for text in ("dropout total 2x3 float32 p=0.5 2t avx2", "2.00", "0.10", *("p=0.2", "p=0.3")):
        assert text in said


def test_another_machine_or_other_settings_are_said() -> None:
    now = command.environment(CPU)
    assert differences(now, now) == []
    before = {**now, "device": {**now["device"], "cpu": "i8086"}, "versions": {"torch": "0.1"}}
    before["variables"] = {**now["variables"], "ATEN_CPU_CAPABILITY": "avx2"}
    found = differences(before, now)
    assert len(found) == 3
    for text in ("cpu was i8086 in OLD", "torch was 0.1", "ATEN_CPU_CAPABILITY was avx2 in OLD"):
        assert any(text in line for line in found)
    assert differences({"records": []}, now)


def scaled(factor: float) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change(found: dict[str, Any]) -> dict[str, Any]:
        ratio = found["times_floor"]
        return {**found, "times_floor": ratio and {key: n * factor for key, n in ratio.items()}}

    return change


@pytest.mark.parametrize(
    ("change", "status", "verdict"),
    [(scaled(1e6), 0, FASTER), (scaled(1e-6), 1, SLOWER)],
)
@pytest.mark.usefixtures("small_problems")
def test_from_one_run_to_the_next(
    change: Callable[[dict[str, Any]], dict[str, Any]], status: int, verdict: str,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    document = run_bench(tmp_path, "dropout2d")
    document["records"] = [change(found) for found in document["records"]]
    old = tmp_path / "old.json"
    old.write_text(json.dumps(document))
    run_bench(tmp_path, "dropout2d", "--compare", str(old), status=status)
    assert f"2 {verdict}" in capsys.readouterr().out


def test_slower_is_what_is_slower_twice() -> None:
    old = [record(1, 1, 1, p=p) for p in (0.1, 0.2, 0.3, 0.4)]

    def run(*medians: float) -> list[Verdict]:
        new = [record(n, n, n, p=r["p"]) for n, r in zip(medians, old, strict=False)]
        return compare.compare(old, new)

    found = compare.confirmed(run(2, 2, 2, 0.5), run(2, 1, 0.5))
    assert [(v.verdict, v.new) for v in found] == [
        (SLOWER, 2),
        (SAME, 1),
        (SAME, 0.5),
        (FASTER, 0.5),
    ]
    # Without a second measurement nothing is taken back.
    assert [v.verdict for v in compare.confirmed(run(2, 2, 2, 2), run())] == [SLOWER] * 4


@pytest.mark.parametrize(("factors", "status"), [((9, 1), 0), ((9, 9), 1), ((1, 9), 0)])
@pytest.mark.usefixtures("small_problems")
def test_what_looks_slower_is_measured_again(
    factors: tuple[int, int], status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Of two ops one looks slower; a record's ratio is given by the number of its measurement."""
    asked: list[str] = []

    def measure(op: BenchOp, point: Point, **options: Any) -> dict[str, Any]:
        factor = factors[asked.count(op.name)] if op.name == "dropout3d" else 1
        asked.append(op.name)
        ratios = dict.fromkeys(("median", "p20", "p80"), factor)
        tables = {key: {"total": ratios} for key in ("seconds", "times_floor", "times_ours")}
        row = {"name": OURS, "p": 0.5, "note": "", **tables}
        facts = {"op": op.name, "sweep": None, "value": None, "floor": "copy_", "device": "cpu"}
        return {**facts, **point.setting.facts(), "other_busy_cores": 0.0, "rows": [row]}

    monkeypatch.setattr(family, "measure", measure)
    ops = ["dropout2d", "dropout3d"]
    run_bench(tmp_path, *ops)
    document = json.loads((tmp_path / "figures.json").read_text())
    for found in document["records"]:
        found["times_floor"] = dict.fromkeys(("median", "p20", "p80"), 1)
    old = tmp_path / "old.json"
    old.write_text(json.dumps(document))
    asked.clear()
    run_bench(tmp_path, *ops, "--compare", str(old), status=status)
    looked_slower = factors[0] > 1
    assert asked == ops + ["dropout3d"] * looked_slower
    said = capsys.readouterr().out
    assert ("measuring again what looks slower: dropout3d" in said) == looked_slower


@pytest.mark.usefixtures("small_problems")
def test_nothing_in_common_is_no_pass(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = tmp_path / "old.json"
    old.write_text(json.dumps({"records": [record()]}))
    run_bench(tmp_path, "dropout2d", "--compare", str(old), status=2)
    captured = capsys.readouterr()
    assert "no record of this run is in it" in captured.err
    said = " ".join(captured.out.split())  # the line with the path is wrapped
    assert "1 only in OLD, 2 only in this run" in said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("{", "is no JSON"),
        (b"\xff\xfe\x00", "is no JSON"),
        ("[]", "has no records of a benchmark"),
        ('{"results": []}', "has no records of a benchmark"),
        ('{"records": []}', "has no records of a benchmark"),
        ('{"records": [1]}', "has no records of a benchmark"),
        ('{"records": [{"op": "dropout"}]}', "has no records of a benchmark"),
        (json.dumps({"records": [record(times_floor=3)]}), "has no records of a benchmark"),
        (json.dumps({"records": [record(median=0)]}), "has no records of a benchmark"),
        (json.dumps({"records": [record(shape=7)]}), "has no records of a benchmark"),
        (json.dumps({"records": [record(p="half")]}), "has no records of a benchmark"),
        (json.dumps({"records": [record(options=[])]}), "has no records of a benchmark"),
    ],
)
def test_files_of_others_are_one_line(
    content: str | bytes | None, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "old.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ArgumentError, match=said):
        read_document(path)
    assert main(["bench", "dropout", "--compare", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert "--compare" in captured.err and str(path) in captured.err and said in captured.err
