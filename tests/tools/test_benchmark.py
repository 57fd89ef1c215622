"""The benchmark on a CPU: figures have the documented keys, rounds interleave, failures are noted.

`test_benchmark_cuda.py` is about the GPU, `test_benchmark_report.py` about goals and saved results.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.bench_scripts import script
from support.benchmarks import row

from fused_dropout._tools import memory
from fused_dropout._tools.bench import command, devices, dropconnect, harness
from fused_dropout._tools.bench.devices import CpuDevice
from fused_dropout._tools.bench.dropconnect import COMPILED, DENSE, NAIVE, OURS, PHASES, Problem
from fused_dropout._tools.bench.harness import Subject, measure_interleaved, ratio, spread
from fused_dropout._tools.cli import main

TINY = ["bench", "--shape", "4,6,10", "--repeats", "2"]


@pytest.fixture(autouse=True)
def short_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_BLOCK_SECONDS", 0.001)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16", "fp64"])
def test_json_has_the_documented_keys(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    arguments = ["--no-compile", "--dtype", dtype, "--mask", "2", "--json", str(path)]
    assert main([*TINY, *arguments]) == 0
    document = json.loads(path.read_text())
    environment = {"command", "date", "commit", "versions", "device", "variables"}
    assert set(document) == {*environment, "records"}
    assert {"torch", "fused_dropout", "python", "compiler"} <= set(document["versions"])
    assert {"cpu", "cores", "threads", "isa", "torch_isa"} <= set(document["device"])

    records = document["records"]
    subjects = [(OURS, 0.5), (OURS, 0.1), (DENSE, None), (NAIVE, 0.5)]
    found = [(record["name"], record["p"], record["phase"]) for record in records]
    assert found == [(*subject, phase) for subject in subjects for phase in PHASES]
    for record in records:
        assert record["op"] == "dropconnect" and record["shape"] == [4, 6, 10]
        assert record["dtype"] == command.DTYPES[dtype]
        assert record["options"] == {"mask": 2}
        assert record["device"] == "cpu" and record["multiply_add_rate"] is None
        assert record["dense_multiply_adds_per_second"] > 0
        role = {OURS: "ours", DENSE: "floor", NAIVE: "peer"}[record["name"]]
        assert record["role"] == role
    for record in records[: len(PHASES)]:
        assert record["speedup_over_compiled"] is None
        assert record["times_lower_bound"] is None and record["share_of_ffma_floor"] is None
        assert record["times_floor"] == record["times_dense"]
        for figure in ("seconds", "speedup_over_naive", "times_dense"):
            figures = record[figure]
            assert 0 < figures["p20"] <= figures["median"] <= figures["p80"]
    assert "4 x 6 x 10" in capsys.readouterr().out


def test_naive_and_compiled_can_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    assert main([*TINY, "-p", "0.3", "--no-naive", "--json", str(path)]) == 0
    records = json.loads(path.read_text())["records"]
    assert {(r["name"], r["p"]) for r in records} == {(OURS, 0.3), (DENSE, None)}


def test_naive_is_skipped_where_memory_is_short(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**20)
    result = dropconnect.measure(Problem(128, 64, 64, ps=(0.5,)), rounds=1)
    assert "would need about 0.0 GiB" in row(result, NAIVE, 0.5)["note"]
    assert COMPILED not in [r["name"] for r in result["rows"]]
    assert main(["bench", "--shape", "128,64,64", "--repeats", "1"]) == 0
    assert "skipped: it would need" in " ".join(capsys.readouterr().out.split())


def test_memory_is_checked_for_every_shape_before_the_first_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = Problem(128, 64, 32, dtype="float16")
    needed = 2 * 2 * (128 * 32 + 64 * 32 + 64 + 128 * 64)
    assert problem.operand_bytes() == needed
    monkeypatch.setattr(memory, "available_bytes", lambda: needed)
    dropconnect.check_memory(problem)
    monkeypatch.setattr(memory, "available_bytes", lambda: needed - 1)
    monkeypatch.setattr(dropconnect, "measure", None)
    path = tmp_path / "figures.json"
    arguments = ["--shape", "128,64,32", "--dtype", "fp16", "--json", str(path)]
    assert main([*TINY, *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert "bench: error: --shape 128,64,32: operands and gradients need about" in captured.err
    assert not path.exists()
    monkeypatch.setattr(memory, "available_bytes", lambda: None)
    dropconnect.check_memory(Problem(1, 10**9, 10**9))


def test_a_failing_compiler_becomes_a_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_compiler(fn: object, **options: object) -> Callable[..., object]:
        def fail(*arguments: object, **keywords: object) -> object:
            raise RuntimeError("InvalidCxxCompiler: no g++\nlong trace")

        return fail

    monkeypatch.setattr(torch, "compile", no_compiler)
    assert main([*TINY, "--compile"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "compiled naive: failed: RuntimeError: InvalidCxxCompiler: no g++" in shown
    assert "long trace" not in shown


class FakeDevice(CpuDevice):
    """Calls return the seconds that they take; a timing is three of them."""

    def __init__(self) -> None:
        self.timed: list[float] = []

    def warm_up(self, call: Callable[[], object]) -> float:
        return float(call())  # type: ignore[arg-type]

    def timings(self, call: Callable[[], object], seconds: float) -> list[float]:
        self.timed.append(seconds)
        return [seconds, 2 * seconds, 9 * seconds]


def test_rounds_interleave_and_slow_subjects_run_in_fewer() -> None:
    subjects = [
        Subject("fast", lambda phase: lambda: 0.1),
        Subject("slow", lambda phase: lambda: 5.0),
    ]
    device = FakeDevice()
    measured = measure_interleaved(
        subjects, ["total"], rounds=4, memory_phase="none", device=device
    ).subjects
    assert device.timed == [0.1, 5, 0.1, 5, 0.1, 5, 0.1]
    assert measured["fast"].timings["total"] == pytest.approx([0.1, 0.2, 0.9] * 4)
    assert measured["slow"].seconds["total"] == [10, 10, 10, None]
    assert measured["slow"].peak_extra_bytes is None


def test_threads_hold_while_subjects_run_and_no_longer() -> None:
    before = torch.get_num_threads()
    seen: list[int] = []

    def call() -> None:
        seen.append(torch.get_num_threads())

    subject = Subject("x", lambda phase: call)
    measure_interleaved([subject], ["total"], rounds=1, threads=before + 2, memory_phase="none")
    assert set(seen) == {before + 2}
    assert torch.get_num_threads() == before


def test_an_unexpected_exception_is_raised() -> None:
    def fail(phase: str) -> Callable[[], object]:
        raise RuntimeError("kernel failed")

    with pytest.raises(RuntimeError, match="kernel failed"):
        measure_interleaved([Subject("x", fail)], PHASES, rounds=1, memory_phase="total")


def test_phases_time_what_they_say() -> None:
    calls = dropconnect.Calls(Problem(3, 4, 5))

    def shapes(phase: str) -> list[tuple[int, ...]]:
        result: Any = calls(torch.nn.functional.linear, phase)()
        return [tuple(tensor.shape) for tensor in ([result] if phase == "forward" else result)]

    assert shapes("forward") == [(3, 4)]
    assert shapes("d_input") == [(3, 5)]
    assert shapes("d_weight") == [(4, 5)]
    assert shapes("total") == [(3, 5), (4, 5), (4,)]


def test_a_backward_phase_can_be_repeated() -> None:
    calls = dropconnect.Calls(Problem(3, 4, 5))
    backward: Any = calls(torch.nn.functional.linear, "d_input")
    assert torch.equal(backward()[0], backward()[0])


def test_other_load_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    # The machine worked 9 s, this process 6 s of them; 2 s passed.
    cpu_seconds = iter([(100.0, 10.0), (109.0, 16.0)])
    clock = iter([50.0, 52.0])
    monkeypatch.setattr(harness, "_machine_and_own_cpu_seconds", lambda: next(cpu_seconds))
    monkeypatch.setattr(harness.time, "perf_counter", lambda: next(clock))
    load = harness._OtherLoad()
    with load:
        pass
    assert load.busy_cores() == 1.5
    assert "1.5 cores" in harness.load_warning(load.busy_cores())
    assert harness.load_warning(0.1) == ""


def test_own_work_is_no_other_load() -> None:
    load = harness._OtherLoad()
    with load:
        deadline = time.process_time() + 0.3
        while time.process_time() < deadline:
            pass
    machine, own = harness._machine_and_own_cpu_seconds()
    assert machine >= own > 0
    assert load.busy_cores() < (os.cpu_count() or 1)


def test_ratio_and_spread() -> None:
    assert ratio([6.0, None, 8.0], [3.0, 1.0, None]) == [2.0, None, None]
    assert spread([None]) is None
    assert spread([4.0, None]) == {"median": 4.0, "p20": 4.0, "p80": 4.0}
    assert spread([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == {"median": 3.5, "p20": 2.0, "p80": 5.0}


def test_mask_storage_script(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = script("mask_storage")
    monkeypatch.setattr(bench, "SHAPES", ((4, 8, 40),))
    assert bench.main(["--repeats", "2"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("4 x 8 x 40") == len(bench.PS)
