"""`fused-dropout bench` over the family: every op in every sweep, on problems made small."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from support.benchmarks import EACH_OP, FAMILY, run_bench
from torch import Tensor

from fused_dropout._core import extension
from fused_dropout._tools import memory
from fused_dropout._tools.bench import family, sweeps
from fused_dropout._tools.bench.devices import CPU, CpuDevice
from fused_dropout._tools.bench.harness import OURS, VARIABLES
from fused_dropout._tools.bench.op import DTYPES, PHASES, BenchOp, Calls, Typical
from fused_dropout._tools.bench.ops import ops_named
from fused_dropout._tools.bench.sweeps import Asked, Point, Setting, points
from fused_dropout._tools.table import ops as rows_of_the_table

WITHOUT_P = {
    "concrete_dropout",
    "gaussian_noise",
    "normal_noise",
    "patch_dropout",
    "uniform_noise",
}
ONE_DTYPE = {"mask", "packed_mask"}
LACKING = {"p": WITHOUT_P, "dtype": ONE_DTYPE}
# In the table of ops, and no op of its own to measure: a form or another name of one that is.
FORMS = {
    "dropout, shared",
    "concrete_dropout, shared",
    "stochastic_depth",
    "dropconnect_linear",
    "dropconnect_conv1d",
    "dropconnect_conv2d",  # as dropconnect_conv
    "dropconnect_conv3d",
}

pytestmark = pytest.mark.usefixtures("small_problems")


def test_the_family_is_the_table_of_ops() -> None:
    assert {op.name for op in rows_of_the_table()} - FORMS <= FAMILY.keys()


@pytest.mark.parametrize("sweep", [None, *sweeps.SWEEPS])
def test_every_op_in_every_sweep(
    sweep: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ours and the floor are measured in every phase; a peer too, unless it is not installed."""
    swept = ["--sweep", sweep, "--max-size", "32"] if sweep else []
    document = run_bench(tmp_path, *swept)
    lacking = LACKING.get(str(sweep), set())
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("left out: ") == len(lacking)
    found: dict[str, list[dict[str, Any]]] = {}
    for record in document["records"]:
        found.setdefault(record["op"], []).append(record)
    assert found.keys() == FAMILY.keys() - lacking
    for name, records in found.items():
        assert f"{name}, " in said or name == "dropconnect"
        check_records(FAMILY[name], sweep, records)


def check_records(op: BenchOp, sweep: str | None, records: list[dict[str, Any]]) -> None:
    values = list(dict.fromkeys(record["value"] for record in records))
    expected = points(op, Asked(sweep, max_size=32, quick=True))
    assert set(values) == {point.value for point in expected if point.value in values}
    assert len(values) == len({point.setting for point in expected})
    detailed = op.name == "dropconnect" and sweep is None
    for value in values:
        here = [record for record in records if record["value"] == value]
        assert {record["name"] for record in here} == {OURS, op.floor_name, *op.peers}
        for record in here:
            role = {OURS: "ours", op.floor_name: "floor"}.get(record["name"], "peer")
            assert record["role"] == role and record["sweep"] == sweep
            if record["note"]:
                assert role == "peer" and "not installed" in record["note"]
                assert record["phase"] is None
                continue
            assert record["seconds"]["median"] > 0
            if not detailed:
                assert record["times_floor"]["median"] > 0 and record["times_ours"]["median"] > 0
        for name in (OURS, op.floor_name):
            phases = {record["phase"] for record in here if record["name"] == name}
            assert phases >= set(op.phases)


def test_the_file_says_what_was_measured_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_ENABLE_INSTRUCTIONS", "AVX2")
    document = run_bench(tmp_path, "dropout", "--dtype", "bf16", "-p", "0.3", "--threads", "1")
    environment = {"command", "date", "commit", "versions", "device", "variables"}
    assert set(document) == {*environment, "records"}
    assert document["variables"] == dict.fromkeys(VARIABLES) | {"MKL_ENABLE_INSTRUCTIONS": "AVX2"}
    assert document["device"]["cpu"] and document["device"]["torch_isa"]
    said = " ".join(capsys.readouterr().out.split())
    assert "Not set: ATEN_CPU_CAPABILITY, ONEDNN_MAX_CPU_ISA, FUSED_DROPOUT_ISA" in said
    dropout = [record for record in document["records"] if record["op"] == "dropout"]
    assert [(r["name"], r["phase"]) for r in dropout] == [
        (name, phase) for name in (OURS, "torch", "copy_") for phase in PHASES
    ]
    for record in dropout:
        assert prod(record["shape"]) <= 60 and record["memory_format"] == "contiguous"
        settings = {key: record[key] for key in ("dtype", "threads", "isa", "device", "rounds")}
        isa = extension.current_isa()
        assert settings == {
            "dtype": "bfloat16", "threads": 1, "isa": isa, "device": "cpu", "rounds": 1,
        }  # fmt: skip
        assert record["p"] == (None if record["role"] == "floor" else 0.3)


def test_shape_and_mask_of_dropconnect_hold_in_sweeps(tmp_path: Path) -> None:
    arguments = ["--shape", "2,3,5", "--mask", "batch", "--sweep", "p", "-p", "0.5"]
    records = run_bench(tmp_path, *arguments)["records"]
    assert {(r["name"], r["phase"]) for r in records} == {
        (name, phase) for name in (OURS, "naive PyTorch", "dense") for phase in PHASES
    }
    for record in records:
        assert (record["op"], record["shape"]) == ("dropconnect", [2, 3, 5])
        assert record["options"] == {"mask": "batch"}


def test_several_p_are_a_sweep(tmp_path: Path) -> None:
    document = run_bench(tmp_path, "dropout2d", "-p", "0.2", "-p", "0.4")
    assert [r["value"] for r in document["records"] if r["name"] == OURS] == [0.2, 0.2, 0.4, 0.4]


def test_a_file_stands_for_its_ops_and_is_measured_once(tmp_path: Path) -> None:
    document = run_bench(tmp_path, "drop_path_add", "channel_dropout", "dropout2d")
    names = list(dict.fromkeys(record["op"] for record in document["records"]))
    assert names == ["drop_path_add", "dropout1d", "dropout2d", "dropout3d"]


def test_peers_can_be_left_out_or_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = run_bench(tmp_path, "dropout2d", "--no-naive")
    assert {record["name"] for record in document["records"]} == {OURS, "copy_"}
    monkeypatch.setattr(torch, "compile", lambda layer, dynamic: layer)
    document = run_bench(tmp_path, "drop_path", "--compile")
    assert "compiled eager" in {r["name"] for r in document["records"] if r["phase"] == "total"}


def test_sizes_go_from_1_to_2_26() -> None:
    for op in FAMILY.values():
        found = points(op, Asked("size"))
        assert [point.value for point in found] == [4**power for power in range(14)]
        for point in found:
            assert prod(point.setting.problem.shape) == point.value, op.name
        limited = points(op, Asked("size", max_size=100))
        assert [point.value for point in limited] == [1, 4, 16, 64]


@pytest.mark.parametrize(
    ("processors", "counts"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_thread_counts(processors: int, counts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "processors", lambda: processors)
    found = points(FAMILY["dropout"], Asked("threads"))
    assert [(p.value, p.setting.threads) for p in found] == [(n, n) for n in counts]


def test_what_other_sweeps_vary() -> None:
    op = FAMILY["drop_path"]
    assert [p.setting.p for p in points(op, Asked("p"))] == list(op.ps)
    assert [p.setting.p for p in points(op, Asked("p", ps=(0.7,)))] == [0.7]
    assert [p.setting.dtype for p in points(op, Asked("dtype"))] == list(DTYPES)
    assert [p.setting.isa for p in points(op, Asked("isa"))] == list(extension.available_isas())
    shapes = points(op, Asked("shape"))
    assert [p.setting.problem for p in shapes] == list(op.shapes)
    assert {p.setting.p for p in shapes} == {op.p}
    assert "32x64x56x56 channels_last" in [p.value for p in shapes]


def test_threads_and_instructions_hold_while_layers_run() -> None:
    lowest, threads = extension.available_isas()[-1], torch.get_num_threads() + 1
    seen = set()

    def ours(p: float) -> Any:
        def layer(input: Tensor) -> Tensor:
            seen.add((torch.get_num_threads(), extension.current_isa(), p))
            return input.clone()

        return layer

    op = replace(FAMILY["dropout"], ours=ours)
    point = Point(None, Setting(Typical((3,)), "float32", 0.25, threads, lowest))
    family.measure(op, point, sweep=None, rounds=1, peers=False, compiled=False, device=CPU)
    assert seen == {(threads, lowest, 0.25)}


class OfKnownSpeed(CpuDevice):
    """A call returns the seconds that it takes."""

    def warm_up(self, call: Callable[[], object]) -> float:
        return float(call())  # type: ignore[arg-type]

    def timings(self, call: Callable[[], object], seconds: float) -> list[float]:
        return [seconds]


def test_ratios_are_to_the_floor_and_to_ours() -> None:
    def taking(seconds: float) -> Any:
        return lambda p: lambda input: torch.tensor(seconds)

    op = replace(
        FAMILY["dropout"], ours=taking(0.02), peers={"torch": taking(0.06)}, phases=("forward",),
        floor=taking(0.01)(None),
    )  # fmt: skip
    result = family.measure(
        op, points(op, Asked(quick=True))[0], sweep=None, rounds=2, peers=True, compiled=False,
        device=OfKnownSpeed(),
    )  # fmt: skip
    found = {
        record["name"]: [record[key]["median"] for key in ("seconds", "times_floor", "times_ours")]
        for record in family.records(result)
    }
    assert found[OURS] == pytest.approx([0.02, 2, 1])
    assert found["torch"] == pytest.approx([0.06, 6, 3])
    assert found["dense"] == pytest.approx([0.01, 1, 0.5])


def test_memory_is_measured_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "peak_extra_bytes", lambda call: 7)
    point = points(FAMILY["dropout"], Asked(quick=True))[0]
    for asked in (True, False):
        result = family.measure(
            FAMILY["dropout"], point, sweep=None, rounds=1, peers=True, compiled=False, device=CPU,
            memory=asked,
        )  # fmt: skip
        assert {row["peak_extra_bytes"] for row in result["rows"]} == {7 if asked else None}


def test_what_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 10)
    (record, *_) = run_bench(tmp_path, "dropout")["records"]
    assert record["note"].startswith("skipped: it would need about") and record["seconds"] is None


@EACH_OP
def test_ours_and_the_peers_make_the_same_of_every_shape(name: str) -> None:
    """Shapes, dtypes and gradients; the scripts' tests compare values."""
    op = FAMILY[name]
    for point in points(op, Asked("shape", quick=True)):
        setting, problem = point.setting, point.setting.problem
        calls = Calls(op, problem.shape, "float32", "cpu", problem.memory_format)
        options = dict(problem.options)
        eager = [
            layer_at for peer, layer_at in op.peers.items() if peer not in ("timm", "torchvision")
        ]
        for layer_at in (op.ours, *eager):
            layer = layer_at(setting.p, **options)
            output: Any = calls.of_layer(layer, "forward")()
            if "total" not in op.phases:
                continue
            assert (output.shape, output.dtype) == (calls.grad.shape, torch.float32)
            gradients: Any = calls.of_layer(layer, "total")()
            for gradient, operand in zip(gradients, calls.operands, strict=True):
                assert gradient is not None and gradient.shape == operand.shape


def test_the_floor_moves_the_bytes_of_a_pass() -> None:
    copied: Any = Calls(FAMILY["drop_path_add"], (4, 6, 5), "bfloat16", "cpu").of_floor("forward")()
    assert (copied.numel(), copied.dtype) == (180, torch.bfloat16)  # 3 tensors of 120
    mask: Any = Calls(FAMILY["mask"], (80, 2), "float32", "cpu").of_floor("forward")()
    assert mask.nbytes * 2 == 160  # one byte for each element, and nothing read
    dense = Calls(FAMILY["dropconnect"], (4, 6, 5), "float32", "cpu")
    expected = torch.nn.functional.linear(*dense.operands)
    assert torch.equal(dense.of_floor("forward")(), expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("op", "peer", "module", "function", "arguments"),
    [
        ("drop_path", "timm", "timm.layers", "drop_path", (0.3, True)),
        ("drop_path", "torchvision", "torchvision.ops", "stochastic_depth", (0.3, "row", True)),
        ("drop_path_add", "timm", "timm.layers", "drop_path", (0.3, True)),
        ("drop_block2d", "torchvision", "torchvision.ops", "drop_block2d", (0.3, 1)),
        ("drop_block2d_shared", "timm", "timm.layers", "drop_block_2d", (0.3, 1)),
        ("drop_block3d", "torchvision", "torchvision.ops", "drop_block3d", (0.3, 1)),
    ],
)
def test_peers_run_their_packages_own_code(
    op: str, peer: str, module: str, function: str, arguments: tuple[object, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    asked = []

    def record(x: Tensor, *rest: object) -> Tensor:
        asked.append(rest)
        return x * 2

    monkeypatch.setitem(sys.modules, module.partition(".")[0], SimpleNamespace())
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{function: record}))
    layer = FAMILY[op].peers[peer](0.3)
    operands = FAMILY[op].operands(
        (2, 3, 4, 4, 4)[: 5 if op.endswith("3d") else 4], torch.Generator()
    )
    layer(*operands)
    assert asked == [arguments]


def test_a_missing_package_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    monkeypatch.setitem(sys.modules, "timm.layers", None)
    (note,) = {
        r["note"] for r in run_bench(tmp_path, "drop_path")["records"] if r["name"] == "timm"
    }
    assert note == "not installed: pip install timm"


def test_notes_are_said_once_or_with_their_place(capsys: pytest.CaptureFixture[str]) -> None:
    def result(value: int, **notes: str) -> dict[str, Any]:
        rows = [{"name": name, "p": None, "note": note} for name, note in notes.items()]
        facts = {"op": "dropout", "sweep": "size", "value": value, "other_busy_cores": 0.0}
        settings = {"shape": [1], "dtype": "float32", "p": None, "threads": 1, "options": {}}
        return {**facts, **settings, "rows": rows}

    results = [result(1, timm="missing", torch="late"), result(2, timm="missing")]
    family.print_results(results, Console(width=100))
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == ["timm: missing", "torch: late (1)"]


def test_a_peer_that_fails_is_a_note() -> None:
    def fail(p: float) -> Any:
        def layer(input: Tensor) -> Tensor:
            raise ValueError("no such thing")

        return layer

    op = replace(FAMILY["dropout"], peers={"torch": fail})
    point = points(op, Asked(quick=True))[0]
    result = family.measure(op, point, sweep=None, rounds=1, peers=True, compiled=False, device=CPU)
    notes = {row["name"]: row["note"] for row in result["rows"]}
    assert notes == {OURS: "", "torch": "failed: ValueError: no such thing", "copy_": ""}


def test_names_lead_to_ops() -> None:
    assert [op.name for op in ops_named("dropconnect")] == ["dropconnect"]
    assert [op.name for op in ops_named("channel_dropout")] == [
        "dropout1d",
        "dropout2d",
        "dropout3d",
    ]
    assert [op.name for op in ops_named("dropout")] == ["dropout", "dropout_inplace"]
    assert [op.name for op in ops_named("drop_path_add")] == ["drop_path_add"]
    assert json.dumps([point.setting.facts() for point in points(FAMILY["dropout"], Asked())])
