"""Measures any op of ops/ at any setting: results for the tables, records for the files.

A record is one measurement: of one subject, at one setting, in one phase.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fused_dropout._core import extension
from fused_dropout._tools.bench.columns import Column, Result, Row, three_digits, times
from fused_dropout._tools.bench.devices import Device
from fused_dropout._tools.bench.harness import (
    OURS,
    Key,
    Measured,
    Prepare,
    load_warning,
    measure_rows,
    relative,
)
from fused_dropout._tools.bench.op import BenchOp, Calls, LayerAt
from fused_dropout._tools.bench.sweeps import Point, Setting

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

OURS_ROLE, PEER_ROLE, FLOOR_ROLE = "ours", "peer", "floor"
_SHARE_OF_MEMORY = 0.6
_GIB = 2**30


def measure(
    op: BenchOp,
    point: Point,
    *,
    sweep: str | None,
    rounds: int,
    peers: bool,
    compiled: bool,
    device: Device,
    memory: bool = False,
    progress: Callable[[str], object] = lambda text: None,
) -> dict[str, Any]:
    """Measure one point: ours, the peers, and the floor; with `memory` also their peaks, slowly.

    Returns a dictionary ready for JSON with `op`, `sweep`, `value` (of the swept quantity), the
    facts of the setting, `floor` (its name) and what `measure_rows` gives. A row has, by phase,
    `times_floor` and `times_ours`: its seconds divided by theirs.
    """
    setting = point.setting
    memory_phase = op.phases[-1] if memory else ""
    with _instructions(setting, device):
        notes, calls = _subjects(op, setting, peers, compiled, device)
        result = measure_rows(
            calls, op.phases, partial(_figures, op, setting.p), rounds=rounds, device=device,
            progress=progress, threads=setting.threads, memory_phase=memory_phase,
            may_fail={name for name, _ in calls} - {OURS, op.floor_name},
        )  # fmt: skip
    result["rows"] += [{"name": name, "p": setting.p, "note": note} for name, note in notes.items()]
    facts = {"op": op.name, "sweep": sweep, "value": point.value, "floor": op.floor_name}
    return {**facts, **setting.facts(), **result}


def _instructions(setting: Setting, device: Device) -> AbstractContextManager[object]:
    return extension.use_isa(setting.isa) if device.kind == "cpu" else nullcontext()


def _subjects(
    op: BenchOp, setting: Setting, peers: bool, compiled: bool, device: Device
) -> tuple[dict[str, str], dict[Key, Prepare]]:
    """Why subjects are left out, by name; what the others prepare."""
    left_out = {}
    layers: dict[str, LayerAt] = {OURS: op.ours}
    if peers:
        layers |= op.peers
    if peers and compiled:
        name, layer_at = next(iter(op.peers.items()))
        layers[f"compiled {name}"] = partial(_compiled, layer_at)
    if note := _too_large(op, setting, op.our_tensors, device):
        return dict.fromkeys([*layers, op.floor_name], note), {}
    if note := _too_large(op, setting, op.peer_tensors, device):
        left_out = {name: note for name in layers if name != OURS}
    problem = setting.problem
    calls = Calls(op, problem.shape, setting.dtype, device.kind, problem.memory_format)
    prepared: dict[Key, Prepare] = {
        (name, setting.p): partial(_prepare, calls, layer_at, setting)
        for name, layer_at in layers.items()
        if name not in left_out
    }
    return left_out, {**prepared, (op.floor_name, None): calls.of_floor}


def _prepare(calls: Calls, layer_at: LayerAt, setting: Setting, phase: str) -> Callable[[], object]:
    return calls.of_layer(layer_at(setting.p, **dict(setting.problem.options)), phase)


def _compiled(layer_at: LayerAt, p: float | None, **options: Any) -> Any:
    torch.compiler.reset()
    return torch.compile(layer_at(p, **options), dynamic=False)


def _too_large(op: BenchOp, setting: Setting, tensors: int, device: Device) -> str:
    element = torch.empty((), dtype=getattr(torch, setting.dtype)).element_size()
    needed, free = tensors * op.elements(setting.problem) * element, device.available_bytes()
    if free is None or needed <= _SHARE_OF_MEMORY * free:
        return ""
    return f"skipped: it would need about {needed / _GIB:.1f} GiB, {free / _GIB:.1f} GiB are free"


def _figures(
    op: BenchOp, p: float | None, key: Key, measured: Mapping[Key, Measured]
) -> dict[str, Any]:
    own = measured[key]
    if own.note:
        return {}
    return {
        "times_floor": relative(own, measured[op.floor_name, None], op.phases),
        "times_ours": relative(own, measured[OURS, p], op.phases),
    }


def steps(op: BenchOp, rounds: int, peers: bool, compiled: bool) -> int:
    """How often `progress` is called for one point, where no subject is left out."""
    subjects = 2 + (len(op.peers) + compiled if peers else 0)
    return len(op.phases) * subjects * (1 + rounds)


def records(result: Result) -> list[dict[str, Any]]:
    """One dictionary for each subject and phase of a result.

    What the result says of the setting, `name`, `role` ("ours", "peer" or "floor"), `phase`,
    `note`, `peak_extra_bytes`, and the row's tables without their phases: `seconds`, `times_floor`,
    `times_ours` and what else there is, each with median, p20 and p80, or None. A subject that was
    not measured is one record, whose phase is None and whose `note` says why.
    """
    about = {key: value for key, value in result.items() if key != "rows"}
    return [
        {**about, **_of_row(row, phase), "role": _role(row["name"], result["floor"])}
        for row in result["rows"]
        for phase in ([None] if row["note"] else row["seconds"])
    ]


def _of_row(row: Row, phase: str | None) -> dict[str, Any]:
    facts = {key: value for key, value in row.items() if not isinstance(value, Mapping)}
    tables = {key: value.get(phase) for key, value in row.items() if isinstance(value, Mapping)}
    absent = dict.fromkeys(("seconds", "times_floor", "times_ours", "peak_extra_bytes"))
    return {**absent, **facts, "phase": phase, **tables}


def _role(name: str, floor: str) -> str:
    return {OURS: OURS_ROLE, floor: FLOOR_ROLE}.get(name, PEER_ROLE)


def _milliseconds(row: Row, phase: str) -> str:
    found = row["seconds"].get(phase)
    return "-" if found is None else three_digits(1e3 * found["median"])


def _columns(phases: Sequence[str], with_spread: bool) -> list[Column]:
    ratio = times if with_spread else _median_times
    return [
        *(Column(f"{phase}\nms", partial(_milliseconds, phase=phase)) for phase in phases),
        *(ratio(f"{phase}\ntimes floor", "times_floor", phase) for phase in phases),
        *(ratio(f"{phase}\ntimes ours", "times_ours", phase) for phase in phases),
    ]


def _median_times(heading: str, figure: str, phase: str) -> Column:
    """For tables that have no room for more."""
    spread = times(heading, figure, phase)
    return Column(heading, lambda row: spread.cell(row).partition(" ")[0])


def print_results(results: Sequence[Result], console: Console) -> None:
    """One table of an op's points, then what was left out and why."""
    console.print(_table(results))
    busy = max(result["other_busy_cores"] for result in results)
    if warning := load_warning(busy):
        console.print(warning, style="yellow")
    notes: dict[str, list[str]] = {}
    for result in results:
        for row in result["rows"]:
            if row["note"]:
                notes.setdefault(f"{row['name']}: {row['note']}", []).append(_where(result))
    for note, places in notes.items():
        where = "" if len(places) == len(results) else f" ({', '.join(places)})"
        console.print(note + where, markup=False)


def _table(results: Sequence[Result]) -> Table:
    from rich.table import Table

    first = results[0]
    phases = [key for key in ("forward", "total") if any(key in _phases(r) for r in results)]
    columns = _columns(phases, with_spread=first["value"] is None)
    table = Table(title=_title(first))
    if first["value"] is not None:
        table.add_column(str(first["sweep"]), no_wrap=True)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for result in results:
        table.add_section()
        for row in result["rows"]:
            where = [] if first["value"] is None else [_where(result)]
            cells = [] if row["note"] else [column.cell(row) for column in columns]
            table.add_row(*where, row["name"], *cells)
    return table


def _phases(result: Result) -> list[str]:
    return [phase for row in result["rows"] for phase in row.get("seconds", ())]


def _where(result: Result) -> str:
    value = result["value"]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _title(result: Result) -> str:
    """The op and what is the same in all rows."""
    shape = "x".join(map(str, result["shape"]))
    facts = {
        "shape": shape if result["sweep"] not in ("size", "shape") else "",
        "dtype": result["dtype"] if result["sweep"] != "dtype" else "",
        "p": "" if result["p"] is None or result["sweep"] == "p" else f"p = {result['p']:g}",
        "threads": "" if result["sweep"] == "threads" else f"threads: {result['threads']}",
    }
    options = [f"{name}={value}" for name, value in result["options"].items()]
    words = [result["op"], *facts.values(), *([] if result["sweep"] == "shape" else options)]
    return ", ".join(word for word in words if word)
