"""Every script of bench/ runs from the command line to its files, on problems made small."""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from support.bench_scripts import script
from support.devices import threads
from support.paths import ROOT

from fused_dropout._tools.bench import devices
from fused_dropout._tools.bench.devices import CPU
from fused_dropout._tools.bench.report import OURS, goal_table

Measure = Callable[..., dict[str, Any]]

SCRIPTS = {path.stem: script(path.stem) for path in sorted((ROOT / "bench").glob("*.py"))}
# What a compiler made of the kernels, and one setting of one op: no peers, no goals on times.
OTHERS = {"kernel_report", "mask_storage"}
each_script = pytest.mark.parametrize("name", sorted(SCRIPTS.keys() - OTHERS))

# The longest side of a shape, and the most of whatever else is counted.
LONGEST, MOST = 9, 50_000
WITHOUT_FIGURES = {"speedup_over_compiled", "share_of_ffma_floor"}  # nothing compiled, no GPU


def small(argument: Any) -> Any:
    """The same kind of problem with short sides."""
    if isinstance(argument, (tuple, list)):
        return tuple(min(n, LONGEST) if isinstance(n, int) else n for n in argument)
    if isinstance(argument, int) and not isinstance(argument, bool):
        return min(argument, MOST)
    if dataclasses.is_dataclass(argument) and not isinstance(argument, type):
        values = {f.name: getattr(argument, f.name) for f in dataclasses.fields(argument)}
        changes = {key: small((value,))[0] for key, value in values.items()}
        changes |= {key: small(value) for key, value in values.items() if type(value) is tuple}
        return dataclasses.replace(argument, **changes)
    return argument


def made_small(measurement: Measure) -> Measure:
    given = partial(measurement)  # with the arguments that it has already
    parameters = inspect.signature(given.func).parameters
    arguments = {key: p.default for key, p in parameters.items() if p.default is not p.empty}
    arguments |= {**dict(zip(parameters, given.args, strict=False)), **given.keywords}
    return partial(given.func, **{key: small(value) for key, value in arguments.items()})


measured: dict[str, dict[str, Any]] = {}


def results_of(name: str, kind: str) -> list[dict[str, Any]]:
    """What the script measures on this kind of device, here on the CPU and each problem once."""
    options = {"rounds": 1, "compiled": False, "device": CPU, "progress": lambda text: None}
    results = []
    with pytest.MonkeyPatch.context() as patch, threads(1):
        patch.setattr(devices, "_BLOCK_SECONDS", 1e-4)
        for measure in map(made_small, SCRIPTS[name].SETUPS[kind].measurements):
            key = repr((measure.func, measure.keywords))
            if key not in measured:
                measured[key] = measure(**options)
            results.append(measured[key])
    return results


@each_script
def test_results_are_complete(name: str) -> None:
    for result in results_of(name, "cpu"):
        rows = [(row["name"], row["p"]) for row in result["rows"]]
        assert len(set(rows)) == len(rows) and OURS in dict(rows)
        for row in result["rows"]:
            tables = row.get("seconds") or row.get("rate") or {}  # by phase, or by size
            assert bool(tables) != bool(row["note"]), "figures, or why there are none"
        shown = io.StringIO()
        SCRIPTS[name].print_result(result, Console(file=shown, width=200))
        wanted = [name for name, _ in rows] if "seconds" in result["rows"][0] else ["56 x 56"]
        assert all(text in shown.getvalue() for text in wanted)


@each_script
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_goal_is_about_a_figure(name: str, kind: str) -> None:
    bench = SCRIPTS[name]
    results, goals = results_of(name, kind), bench.SETUPS[kind].goals
    for goal in goals:
        figure = goal.measured(results)
        assert (figure is None) == (goal.figure in WITHOUT_FIGURES), goal.text()
        assert figure is None or 0 <= figure < math.inf, goal.text()
    assert goal_table(goals, results, bench.shape_text).row_count == len(goals)


@each_script
def test_from_the_command_line_to_the_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    bench, results = SCRIPTS[name], results_of(name, "cpu")
    asked: list[tuple[object, ...]] = []

    def measure(result: dict[str, Any], **options: Any) -> dict[str, Any]:
        asked.append((options["rounds"], options["compiled"], options["device"]))
        return result

    measurements = [partial(measure, result) for result in results]
    setup = dataclasses.replace(bench.SETUPS["cpu"], measurements=measurements)
    monkeypatch.setitem(bench.SETUPS, "cpu", setup)
    monkeypatch.setenv("COLUMNS", "250")
    arguments = ["--no-compile", "--repeats", "3", "--save", "--results", str(tmp_path)]
    assert bench.main(arguments) == (0 if all(g.met(results) for g in setup.goals) else 1)
    assert asked == [(3, False, CPU)] * len(results)
    said = " ".join(capsys.readouterr().out.split())  # long titles are wrapped
    assert all(" ".join(bench.result_title(result).split()) in said for result in results)
    (saved,) = tmp_path.glob("*.json")
    assert saved.name.startswith(setup.file_prefix)
    assert json.loads(saved.read_text())["results"] == json.loads(json.dumps(results))
    assert saved.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@each_script
def test_goals_of_a_gpu_are_its_own(name: str) -> None:
    """A goal that was measured on a CPU says nothing about a GPU."""
    setups = SCRIPTS[name].SETUPS
    assert setups.keys() == {"cpu", "cuda"} and setups["cpu"].goals
    assert setups["cpu"].goals is not setups["cuda"].goals


@pytest.mark.skipif(not shutil.which("make"), reason="needs GNU make")
def test_make_bench_runs_them_all() -> None:
    command = ["make", "-n", "bench", "PYTHON=python3"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = set(re.findall(r"bench/(\w+)\.py", done.stdout))
    assert found == SCRIPTS.keys() - OTHERS


def test_every_other_script_is_known() -> None:
    assert {name for name, bench in SCRIPTS.items() if not hasattr(bench, "SETUPS")} == OTHERS
