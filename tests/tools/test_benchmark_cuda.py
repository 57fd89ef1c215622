"""The benchmark's GPU side, without a GPU: what it asks of torch, triton and nvidia-smi."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from support.benchmarks import row
from torch.nn import functional as F

from fused_dropout._core.extension import cuda_obstacle
from fused_dropout._tools.bench import cuda, dropconnect
from fused_dropout._tools.bench.cuda import CudaDevice, Gpu
from fused_dropout._tools.bench.devices import CpuDevice, MultiplyAddRate
from fused_dropout._tools.bench.dropconnect import (
    COMPILED,
    DENSE,
    LOWER_BOUND,
    NAIVE,
    OURS,
    PHASES,
    Calls,
    Problem,
    measure,
)
from fused_dropout._tools.bench.dropconnect_table import print_result
from fused_dropout._tools.bench.find_device import find_device
from fused_dropout._tools.bench.harness import (
    Subject,
    environment,
    measure_interleaved,
    print_replays,
)
from fused_dropout._tools.bench.lower_bound import DenseReadingMasks
from fused_dropout._tools.cli import main
from fused_dropout._tools.common import ArgumentError

H200 = Gpu("NVIDIA H200", (9, 0), 132, 150 * 10**9, "580.1", 1.98e9, "device property")
PROPERTIES = {
    "name": "NVIDIA H200", "major": 9, "minor": 0, "multi_processor_count": 132,
    "total_memory": 150 * 10**9, "uuid": "1234-abcd",
}  # fmt: skip


def no_timing(*arguments: object, **options: object) -> list[float]:
    raise AssertionError("timed")


def device_of(gpu: Gpu = H200, do_bench: Callable[..., Any] = no_timing) -> CudaDevice:
    return CudaDevice(gpu, do_bench, "3.6.0")


# ---- The device ---------------------------------------------------------------------------------


def test_rate_is_multiprocessors_times_lanes_times_clock() -> None:
    rate = device_of().multiply_add_rate()
    assert rate is not None
    assert rate.per_second == 132 * 128 * 1.98e9
    assert "132 multiprocessors x 128 fp32 lanes x 1.98 GHz" in rate.text()
    assert "33.5 T/s" in rate.text() and "device property" in rate.text()
    assert device_of(replace(H200, clock_hz=None)).multiply_add_rate() is None


@pytest.mark.parametrize(
    ("capability", "lanes"),
    [((7, 5), 64), ((8, 0), 64), ((8, 6), 128), ((8, 9), 128), ((9, 0), 128), ((12, 0), 128)],
)
def test_lanes(capability: tuple[int, int], lanes: int) -> None:
    assert replace(H200, capability=capability).fp32_lanes() == lanes


def fake_machine(
    monkeypatch: pytest.MonkeyPatch, smi: str | Exception, **properties: object
) -> list[list[str]]:
    """A GPU with these properties, and what nvidia-smi says; returns the commands to be run."""
    commands: list[list[str]] = []

    def run(command: list[str], **options: object) -> SimpleNamespace:
        commands.append(command)
        if isinstance(smi, Exception):
            raise smi
        return SimpleNamespace(stdout=smi)

    found = SimpleNamespace(**PROPERTIES, **properties)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found)
    monkeypatch.setattr(cuda.subprocess, "run", run)
    return commands


@pytest.mark.parametrize(
    ("properties", "smi", "clock", "source", "driver"),
    [
        ({"clock_rate": 1980000}, "580.1, 1755\n", 1.98e9, "device property", "580.1"),
        ({}, "580.1, 1755\n", 1.755e9, "nvidia-smi", "580.1"),
        ({"clock_rate": 0}, "580.1, 1755\n", 1.755e9, "nvidia-smi", "580.1"),
        ({}, "580.1, [N/A]\n", None, "", "580.1"),
        ({}, FileNotFoundError("nvidia-smi"), None, "", "unknown"),
        ({}, subprocess.CalledProcessError(6, "nvidia-smi"), None, "", "unknown"),
        ({"clock_rate": 1980000}, "", 1.98e9, "device property", "unknown"),
    ],
)
def test_clock_and_driver_are_found_where_they_stand(
    monkeypatch: pytest.MonkeyPatch,
    properties: dict[str, object],
    smi: str | Exception,
    clock: float | None,
    source: str,
    driver: str,
) -> None:
    commands = fake_machine(monkeypatch, smi, **properties)
    gpu = Gpu.current()
    assert (gpu.clock_hz, gpu.clock_source, gpu.driver) == (clock, source, driver)
    assert (gpu.name, gpu.capability, gpu.multiprocessors) == ("NVIDIA H200", (9, 0), 132)
    (command,) = commands
    assert command[0] == "nvidia-smi" and "--id=GPU-1234-abcd" in command


def test_timings_are_all_of_a_round_in_seconds() -> None:
    asked: list[tuple[object, dict[str, object]]] = []

    def do_bench(call: object, **options: object) -> list[float]:
        asked.append((call, options))
        return [1.0, 2.0, 4.0]

    call = lambda: None  # noqa: E731
    assert device_of(do_bench=do_bench).timings(call, 0.1) == [0.001, 0.002, 0.004]
    ((timed, options),) = asked
    assert timed is call and options["return_mode"] == "all"


def test_products_are_in_fp32_while_subjects_run_and_the_setting_comes_back() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    try:
        for setting in (True, False):
            matmul.allow_tf32 = setting
            with pytest.raises(RuntimeError, match="subject"), device_of().measuring():
                assert not matmul.allow_tf32
                raise RuntimeError("subject")
            assert matmul.allow_tf32 == setting
    finally:
        matmul.allow_tf32 = before


def test_peak_memory_is_what_the_call_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    held = SimpleNamespace(now=100, peak=500)

    def call() -> None:
        held.now += 30
        held.peak = max(held.peak, held.now + 7)

    def reset() -> None:
        held.peak = held.now

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: held.now)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: held.peak)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    assert device_of().peak_extra_bytes(call) == 37


def test_available_memory_counts_what_the_allocator_keeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 100)
    assert device_of().available_bytes() == 1200


def test_environment_names_gpu_driver_and_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = environment(device_of())
    assert (found["versions"]["cuda"], found["versions"]["triton"]) == ("13.0", "3.6.0")
    device = found["device"]
    assert (device["gpu"], device["driver"]) == ("NVIDIA H200", "580.1")
    assert (device["compute_capability"], device["clock_hz"]) == ("9.0", 1.98e9)
    assert device["cpu"]
    assert device_of().file_name() == "nvidia-h200"


def test_missing_triton_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(ArgumentError, match="--device cuda needs triton"):
        CudaDevice.current()


def test_cuda_is_refused_where_it_cannot_run() -> None:
    if cuda_obstacle() is None:
        assert find_device("cuda").name() == torch.cuda.get_device_name()
    else:
        with pytest.raises(ArgumentError, match="--device cuda: no "):
            find_device("cuda")


class FakeCuda:
    """torch.cuda's part in a capture, written down in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        cuda = torch.cuda
        for name in ("graph", "stream"):
            monkeypatch.setattr(cuda, name, partial(self.scope, name))
        monkeypatch.setattr(cuda, "current_stream", lambda: self.stream("current"))
        monkeypatch.setattr(cuda, "Stream", lambda: self.stream("side"))
        replay = partial(self.log.append, "replay")
        monkeypatch.setattr(cuda, "CUDAGraph", lambda: SimpleNamespace(name="graph", replay=replay))

    def stream(self, name: str) -> SimpleNamespace:
        def wait(other: SimpleNamespace) -> None:
            self.log.append(f"{name} waits for {other.name}")

        return SimpleNamespace(name=name, wait_stream=wait)

    @contextmanager
    def scope(self, kind: str, target: SimpleNamespace) -> Iterator[None]:
        self.log.append(f"in {kind} {target.name}")
        yield
        self.log.append("out")


def test_a_graph_is_captured_of_a_call_that_has_run_on_the_side(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake = FakeCuda(monkeypatch)
    replay = device_of().graph_of(lambda: fake.log.append("call"))
    replay()
    assert fake.log == [
        "side waits for current", "in stream side", *["call"] * 3, "out", "current waits for side",
        "in graph graph", "call", "out", "replay",
    ]  # fmt: skip


# ---- The rows -----------------------------------------------------------------------------------


def test_the_lower_bound_is_the_dense_layer() -> None:
    calls = Calls(Problem(3, 4, 5))
    bound = DenseReadingMasks(3 * 4 * 5)
    for phase in PHASES:
        expected: Any = calls(F.linear, phase)()
        found: Any = calls(bound, phase)()
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("phase", "reads"), [("forward", 1), ("d_input", 1), ("d_weight", 1), ("total", 3)]
)
def test_the_lower_bound_reads_the_masks_once_per_pass(
    phase: str, reads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = DenseReadingMasks(3 * 64 * 5)
    call = Calls(Problem(3, 64, 5))(bound, phase)
    call()
    read: list[torch.Tensor] = []
    own_sum = torch.Tensor.sum

    def sum_of(tensor: torch.Tensor, *arguments: Any) -> torch.Tensor:
        read.append(tensor)
        return own_sum(tensor, *arguments)

    monkeypatch.setattr(torch.Tensor, "sum", sum_of)
    call()
    words = [tensor for tensor in read if tensor.dtype == torch.int64]
    assert len(words) == reads
    assert all(tensor.numel() == 15 and tensor is words[0] for tensor in words)


class FakeGpu(CpuDevice):
    """Says that it is a GPU, runs on the CPU, and finds the same timings for everything."""

    kind = "cuda"

    def __init__(self, free: int = 2**30) -> None:
        self.free = free

    def timings(self, call: Callable[[], object], seconds: float) -> list[float]:
        call()
        return [2e-6, 4e-6, 8e-6]  # us, as tables show them

    def graph_of(self, call: Callable[[], object]) -> Callable[[], object]:
        return lambda: call()

    def available_bytes(self) -> int | None:
        return self.free

    def multiply_add_rate(self) -> MultiplyAddRate | None:
        return MultiplyAddRate(1, 128, 1e9, "device property")


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dropconnect, "Calls", lambda problem, device: Calls(problem))


@pytest.mark.usefixtures("on_cpu")
def test_rows_of_a_gpu() -> None:
    result = measure(Problem(2, 64, 32), rounds=2, compiled=False, device=FakeGpu())
    names = [(found["name"], found["p"]) for found in result["rows"]]
    assert names == [(OURS, 0.5), (OURS, 0.1), (DENSE, None), (LOWER_BOUND, None), (NAIVE, 0.5)]
    assert result["device"] == "cuda"
    assert result["multiply_add_rate"]["per_second"] == 128e9
    ours = row(result, OURS, 0.5)
    assert ours["seconds"]["total"] == pytest.approx({"median": 4e-6, "p20": 2e-6, "p80": 8e-6})
    assert ours["times_lower_bound"]["total"]["median"] == 1
    # 2 * 64 * 32 multiply-adds take 32 ns, three passes 96.
    shares = {phase: ours["share_of_ffma_floor"][phase]["median"] for phase in PHASES}
    assert shares["forward"] == shares["d_weight"] == pytest.approx(0.008)
    assert shares["total"] == pytest.approx(0.024)


@pytest.mark.usefixtures("on_cpu")
def test_replays_of_whole_phases_stand_beside_the_calls() -> None:
    result = measure(Problem(2, 64, 32), rounds=2, compiled=False, device=FakeGpu())
    for found in result["rows"]:
        assert list(found["replay_seconds"]) == ["forward", "total"], "no backward pass alone"
        assert found["replay_seconds"]["total"]["median"] == pytest.approx(4e-6)
        assert found["replay_note"] == ""
    shown = io.StringIO()
    print_replays(result, Console(file=shown, width=120))
    assert "replay" in shown.getvalue() and f"{OURS} p=0.5" in shown.getvalue()


def test_calls_and_replays_are_told_apart() -> None:
    class Device(FakeGpu):
        def timings(self, call: Callable[[], object], seconds: float) -> list[float]:
            return [1e-6 if call() == "replay" else 5e-6]

        def graph_of(self, call: Callable[[], object]) -> Callable[[], object]:
            if call() == "stubborn":
                raise RuntimeError("operation not permitted when stream is capturing\nmore")
            return lambda: "replay"

    subjects = [
        Subject("calm", lambda phase: lambda: "call"),
        Subject("stubborn", lambda phase: lambda: "stubborn"),
    ]
    measured = measure_interleaved(
        subjects, ("forward", "d_input"), rounds=3, memory_phase="forward", device=Device()
    )
    calm, stubborn = measured.subjects["calm"], measured.subjects["stubborn"]
    assert calm.timings["forward"] == [5e-6] * 3 and calm.replays == {"forward": [1e-6] * 3}
    assert stubborn.timings["forward"] == [5e-6] * 3 and stubborn.replays == {}
    note = "RuntimeError: operation not permitted when stream is capturing"
    assert (calm.replay_note, stubborn.replay_note, stubborn.note) == ("", note, "")
    rows = [
        {"name": name, "p": None, **found.figures()} for name, found in measured.subjects.items()
    ]
    text = io.StringIO()
    print_replays({"rows": rows}, Console(file=text, width=120))
    assert f"stubborn: no CUDA graph: {note}" in text.getvalue()
    assert "calm" in text.getvalue() and "0.005" in text.getvalue() and "0.001" in text.getvalue()


def test_a_cpu_has_no_replays() -> None:
    subject = Subject("calm", lambda phase: lambda: None)
    measured = measure_interleaved([subject], ("total",), rounds=1, memory_phase="total")
    result = {"rows": [{"name": "calm", "p": None, **measured.subjects["calm"].figures()}]}
    assert result["rows"][0]["replay_seconds"] == {} and not result["rows"][0]["replay_note"]
    text = io.StringIO()
    print_replays(result, Console(file=text, width=120))
    assert text.getvalue() == ""


@pytest.mark.usefixtures("on_cpu")
def test_the_naive_layer_is_skipped_by_the_gpu_s_memory() -> None:
    result = measure(Problem(8, 64, 32), rounds=1, device=FakeGpu(free=2**17))
    assert "skipped" in row(result, NAIVE, 0.5)["note"]
    assert COMPILED not in [found["name"] for found in result["rows"]]


@pytest.mark.usefixtures("on_cpu")
def test_there_is_no_ffma_floor_for_fp64() -> None:
    problem = Problem(2, 8, 8, ps=(0.5,), dtype="float64")
    result = measure(problem, rounds=1, naive=False, device=FakeGpu())
    assert result["multiply_add_rate"] is None
    assert row(result, OURS, 0.5)["share_of_ffma_floor"] is None
    assert "no floor is known" in shown(result)


def shown(result: dict[str, Any]) -> str:
    text = io.StringIO()
    print_result(result, Console(file=text, width=120))
    return text.getvalue()


@pytest.mark.usefixtures("on_cpu")
def test_tables_state_the_assumed_rate_and_fit_a_page() -> None:
    text = shown(measure(Problem(2, 64, 32), rounds=2, compiled=False, device=FakeGpu()))
    assert "2.4%" in text and "1.00x" in text
    assert "4.00" in text and "(2.00-8.00)" in text
    in_one_line = " ".join(text.split())
    assert "1 multiprocessors x 128 fp32 lanes x 1 GHz (device property)" in in_one_line
    assert "TF32 off" in in_one_line
    assert "…" not in text


# ---- On a GPU -----------------------------------------------------------------------------------


def test_all_rows_of_a_gpu_are_measured(cuda: torch.device) -> None:
    device = find_device("cuda")
    assert device.name() == torch.cuda.get_device_name(cuda)
    available = device.available_bytes()
    assert available is not None and 0 < available <= device.facts()["memory_bytes"]
    rate = device.multiply_add_rate()
    assert rate is not None and 1e11 < rate.per_second < 1e15
    result = measure(Problem(8, 256, 256), rounds=2, compiled=False, device=device)
    names = [found["name"] for found in result["rows"]]
    assert names == [OURS, OURS, DENSE, LOWER_BOUND, NAIVE]
    for found in result["rows"]:
        assert not found["note"], found["note"]
        assert found["peak_extra_bytes"] >= 4 * (8 * 256 + 256 * 256)  # two of the gradients
        assert not found["replay_note"], found["replay_note"]
        assert all(
            0 < found["replay_seconds"][phase]["median"] < 1 for phase in ("forward", "total")
        )
        for phase in PHASES:
            seconds = found["seconds"][phase]
            assert 0 < seconds["p20"] <= seconds["median"] <= seconds["p80"] < 1
            assert 0 < found["share_of_ffma_floor"][phase]["median"] < 1
    assert "x 128 fp32 lanes" in shown(result) or "x 64 fp32 lanes" in shown(result)


def test_the_command_measures_on_a_gpu(cuda: torch.device, tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    arguments = ["--device", "cuda", "--shape", "4,64,64", "--repeats", "1", "--no-compile"]
    assert main(["bench", *arguments, "--json", str(path)]) == 0
    document = json.loads(path.read_text())
    assert document["device"]["gpu"] == torch.cuda.get_device_name(cuda)
    assert {"cuda", "triton"} <= set(document["versions"])
