"""Goals and saved results of the scripts of bench/."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bench_scripts import script

from fused_dropout._core import extension
from fused_dropout._core.extension import cuda_obstacle
from fused_dropout._tools.bench import devices
from fused_dropout._tools.bench.devices import CPU, CpuDevice
from fused_dropout._tools.bench.dropconnect import PHASES
from fused_dropout._tools.bench.dropconnect_table import result_title, shape_text
from fused_dropout._tools.bench.harness import VARIABLES, environment, instruction_sets
from fused_dropout._tools.bench.report import OURS, Goal, Script, Setup, goal_table, run_script
from fused_dropout._tools.cli import main


def figures(p: float, **changed: float) -> dict[str, Any]:
    """A row that meets all goals, but for what is changed."""
    totals = {
        "speedup_over_naive": 500.0, "speedup_over_compiled": 50.0, "times_dense": 2.0,
        "share_of_ffma_floor": 0.6, "peak_extra_bytes": 20.0 * 2**20, **changed,
    }  # fmt: skip
    peak = totals.pop("peak_extra_bytes")
    tables = {figure: {"total": {"median": value}} for figure, value in totals.items()}
    seconds = {phase: {"median": 0.01} for phase in PHASES}
    return {
        "name": OURS, "p": p, "note": "", "seconds": seconds, "peak_extra_bytes": peak, **tables
    }  # fmt: skip


def result(**changed: float) -> dict[str, Any]:
    shape = {"batch": 128, "out_features": 1024, "in_features": 1024, "dtype": "float32"}
    return {**shape, "rows": [figures(0.5, **changed), figures(0.1, **changed)]}


@pytest.mark.parametrize(
    ("kind", "changed", "missed"),
    [
        ("cpu", {}, 0),
        ("cpu", {"speedup_over_naive": 100.0}, 1),
        ("cpu", {"speedup_over_naive": 59.0}, 2),
        ("cpu", {"times_dense": 3.1}, 2),
        ("cpu", {"times_dense": 10.1}, 3),
        ("cpu", {"peak_extra_bytes": 41.0 * 2**20}, 2),
        ("cuda", {}, 0),
        ("cuda", {"speedup_over_naive": 19.9}, 1),
        ("cuda", {"speedup_over_compiled": 4.9}, 1),
        ("cuda", {"times_dense": 3.1}, 1),
        ("cuda", {"share_of_ffma_floor": 0.49}, 1),
    ],
)
def test_goals_are_judged(kind: str, changed: dict[str, float], missed: int) -> None:
    goals = script("dropconnect").SETUPS[kind].goals
    results = [result(**changed)] * 2
    assert [goal.met(results) for goal in goals].count(False) == missed
    assert goal_table(goals, results, shape_text).row_count == len(goals)


@pytest.mark.parametrize("figure", [None, {}, {"total": None}])
def test_a_goal_that_was_not_measured_is_missed(figure: object) -> None:
    goal = Goal(0, 0.5, "times_dense", at_most=3)
    measured = result()
    assert goal.met([measured])
    measured["rows"][0]["times_dense"] = figure
    assert not goal.met([measured])


def test_goals_state_their_unit() -> None:
    assert Goal(0, 0.5, "times_dense", at_most=3).text() == "times dense <= 3x"
    assert Goal(0, 0.5, "peak_extra_bytes", at_most=40).text() == "peak extra <= 40 MiB"
    floor = Goal(0, 0.5, "share_of_ffma_floor", at_least=50, phase="forward")
    assert floor.text() == "share of the FFMA floor >= 50 %"
    measured = result()
    measured["rows"][0]["share_of_ffma_floor"] = {"forward": {"median": 0.75}}
    assert floor.measured([measured]) == pytest.approx(75)


def print_nothing(result: object, console: object) -> None:
    pass


def blur(folder: Path, measure: Callable[..., dict[str, Any]]) -> Script:
    """A script with one measurement, one goal, and nothing to print."""
    setup = Setup("blur-", (measure,), (Goal(0, 0.1, "times_dense", at_most=3),))
    return Script("Blurs.", {"cpu": setup}, folder, print_nothing, shape_text, result_title)


def test_save_writes_json_and_plot_named_by_the_threads_measured_with(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    asked: dict[str, object] = {}

    def measure(**options: object) -> dict[str, Any]:
        asked.update(options)
        return result()

    blurred = blur(tmp_path / "results", measure)
    assert run_script(blurred, ["--save", "--threads", "3", "--repeats", "4"]) == 0
    assert (asked["rounds"], asked["compiled"], asked["device"]) == (4, True, CPU)
    saved, plot = sorted((tmp_path / "results").iterdir())
    assert saved.name.startswith("blur-") and "-3t-" in saved.name and saved.suffix == ".json"
    document = json.loads(saved.read_text())
    assert document["results"] == [result()] and document["device"]["threads"] == 3
    assert plot.read_bytes().startswith(b"\x89PNG") and plot.stem == saved.stem


def test_a_missed_goal_is_the_exit_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script(blur(tmp_path, lambda **options: result(times_dense=4.0)), []) == 1
    assert "NO" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_figures_without_goals_are_not_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setup = Setup("blur-", (lambda **options: result(times_dense=400.0),))
    blurred = replace(blur(tmp_path, lambda: {}), setups={"cpu": setup})
    assert run_script(blurred, []) == 0
    said = capsys.readouterr().out
    assert "no goals are stated for cpu" in said and "NO" not in said


def test_names_say_which_instruction_set_was_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, threads = devices.slug(devices.cpu_model()), torch.get_num_threads()
    monkeypatch.delenv("FUSED_DROPOUT_ISA", raising=False)
    assert CPU.file_name() == f"{cpu}-{threads}t"
    lowest = extension.available_isas()[-1]
    monkeypatch.setenv("FUSED_DROPOUT_ISA", lowest)
    with extension.use_isa(lowest):  # the variable is read when the package is imported
        assert CPU.file_name() == f"{cpu}-{lowest}-{threads}t"


def test_instruction_sets_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    own, torchs = extension.current_isa(), torch.backends.cpu.get_cpu_capability()
    said = f"Instruction sets: {own} in our kernels, {torchs} in torch's"
    assert instruction_sets() == f"{said} (nothing is forced)."
    for name in VARIABLES:
        monkeypatch.setenv(name, "AVX2")
    shown = ", ".join(f"{name}=AVX2" for name in VARIABLES)
    assert instruction_sets() == f"{said} ({shown})."
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    assert "Not set: ONEDNN_MAX_CPU_ISA; so peers may use other" in instruction_sets()
    assert environment(CPU)["variables"]["ONEDNN_MAX_CPU_ISA"] is None
    assert environment(CPU)["variables"]["ATEN_CPU_CAPABILITY"] == "AVX2"


def test_results_can_go_elsewhere(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    elsewhere = tmp_path / "some" / "folder"
    blurred = blur(tmp_path / "results", lambda **options: result())
    assert run_script(blurred, ["--save", "--results", str(elsewhere)]) == 0
    assert len(list(elsewhere.iterdir())) == 2 and not (tmp_path / "results").exists()


def test_goals_that_only_a_cpu_has() -> None:
    """A goal that was measured on a CPU says nothing about a GPU."""
    for name in ("drop_block", "drop_path"):
        setups = script(name).SETUPS
        assert setups["cpu"].goals
        assert not [goal for goal in setups["cuda"].goals if goal.figure != "off_the_wanted_rate"]


def test_mask_storage_measures_on_the_device_that_it_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = script("mask_storage")
    asked: list[object] = []

    class Device(CpuDevice):
        def name(self) -> str:
            return "a stand-in"

        def timings(self, call: Callable[[], object], seconds: float) -> list[float]:
            asked.append(call())
            return [1e-3]

    monkeypatch.setattr(bench, "SHAPES", ((2, 6, 9),))
    monkeypatch.setattr(bench, "find_device", lambda kind: Device() if kind == "cuda" else CPU)
    assert bench.main(["--device", "cuda", "--repeats", "2"]) == 0
    assert "a stand-in" in capsys.readouterr().out
    assert len(asked) == 2 * len(bench.PS) * len(bench.STORAGES)


@pytest.mark.parametrize("folder", ["a file", "/proc/nowhere"])
def test_save_checks_its_files_before_it_measures(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    (tmp_path / "a file").touch()

    def measure(**options: object) -> dict[str, Any]:
        raise AssertionError("measured")

    with pytest.raises(SystemExit) as stop:
        run_script(blur(tmp_path / folder, measure), ["--save"])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert f"cannot write --save {tmp_path / folder}/blur-" in captured.err


def test_a_failed_measurement_leaves_no_saved_file(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")

    def fail(**options: object) -> dict[str, Any]:
        assert len(list(tmp_path.iterdir())) == 2
        raise RuntimeError("kernel failed")

    with pytest.raises(RuntimeError, match="kernel failed"):
        run_script(blur(tmp_path, fail), ["--save"])
    assert not list(tmp_path.iterdir())


def test_dropconnect_script_measures_its_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command line to the file, with small shapes in place of the real ones."""
    pytest.importorskip("matplotlib")
    bench = script("dropconnect")
    cpu = bench.SETUPS["cpu"]
    small = [
        partial(real.func, replace(real.args[0], batch=2, out_features=6, in_features=9),
                **{**real.keywords, "naive": False})
        for real in cpu.measurements
    ]  # fmt: skip
    monkeypatch.setitem(bench.SETUPS, "cpu", replace(cpu, measurements=small))
    monkeypatch.setattr(devices, "_BLOCK_SECONDS", 0.001)
    assert bench.main(["--save", "--repeats", "2", "--results", str(tmp_path)]) == 1
    (saved,) = tmp_path.glob("dropconnect-*.json")
    assert [found["batch"] for found in json.loads(saved.read_text())["results"]] == [2, 2]


def test_a_gpu_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    if cuda_obstacle() is None:
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit) as stop:
        script("dropconnect").main(["--device", "cuda"])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert "error: --device cuda: no " in captured.err
    assert main(["bench", "--device", "cuda"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert "bench: error: --device cuda: no " in captured.err
