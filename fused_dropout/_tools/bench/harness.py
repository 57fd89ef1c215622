"""The harness that every benchmark of the package uses.

Subjects are interleaved: each round times every subject once, ratios are taken within a round, and
the median ratio over the rounds is reported with its 20th and 80th percentiles. So a machine that
is slowed down for a while slows down both sides of a ratio.

Saved JSON has the keys command, date, commit, versions, device, variables (of the environment, that
force instruction sets) and results; `measure` in dropconnect.py documents one result. Files of
`fused-dropout bench` have records instead; `records` in family.py documents one.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import fused_dropout
from fused_dropout._core import extension
from fused_dropout._tools.bench.devices import CPU, Device, cpu_model
from fused_dropout._tools.common import thread_count

if TYPE_CHECKING:
    from rich.console import Console

OURS = "fused_dropout"  # the name of the rows that are not a peer's
Samples = list[float | None]  # one per round; None where it was not timed
Spread = dict[str, float]  # median, p20, p80
Key = tuple[str, float | None]  # a row's name and drop probability
Prepare = Callable[[str], Callable[[], object]]  # from a phase to the call that it times
# What forces the instruction sets of MKL, of torch's own kernels, of oneDNN and of ours. Peers are
# held to the same instructions as our kernels only where all of them are forced together.
VARIABLES = (
    "MKL_ENABLE_INSTRUCTIONS",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "FUSED_DROPOUT_ISA",
)
_SLOW_SECONDS = 0.3  # calls that take longer are timed in a few rounds only
_SLOW_ROUNDS = 3
_BUSY_CORES = 0.25


class NotInstalled(RuntimeError):
    """A peer's package is missing; the message, which becomes a row's note, says how to mend it."""


@dataclass(frozen=True)
class Subject:
    """One row of a benchmark; `prepare(phase)` returns the call that the phase times."""

    name: str
    prepare: Prepare
    may_fail: bool = False  # an exception becomes the note of the row


@dataclass
class Measured:
    """Figures of one subject."""

    # By phase, the median of each round; None where it was not timed.
    seconds: dict[str, Samples] = field(default_factory=dict)
    # By phase, every timing of all rounds; and of replays of the call's CUDA graph, if it has one.
    timings: dict[str, list[float]] = field(default_factory=dict)
    replays: dict[str, list[float]] = field(default_factory=dict)
    peak_extra_bytes: int | None = None
    note: str = ""
    replay_note: str = ""  # why there are no replays

    def figures(self) -> dict[str, Any]:
        """What every row of a result says of its subject."""
        return {
            "note": self.note,
            "peak_extra_bytes": self.peak_extra_bytes,
            "seconds": {phase: spread(timings) for phase, timings in self.timings.items()},
            "replay_seconds": {phase: spread(timings) for phase, timings in self.replays.items()},
            "replay_note": self.replay_note,
        }


@dataclass
class Measurements:
    """Figures of all subjects by name, and how many cores other processes kept busy meanwhile."""

    subjects: dict[str, Measured]
    other_busy_cores: float = 0.0


def measure_interleaved(
    subjects: Sequence[Subject],
    phases: Sequence[str],
    *,
    rounds: int,
    memory_phase: str,
    threads: int | None = None,
    device: Device = CPU,
    progress: Callable[[str], object] = lambda text: None,
    replayed: Collection[str] = ("forward", "total"),
) -> Measurements:
    """Time each phase of each subject, interleaved; peak memory is taken in `memory_phase`.

    Slow subjects run in the first rounds only. Everything prepared for a phase is released before
    the next phase. `threads` of the CPU run torch's operations (default: as many as are set). On a
    GPU the phases in `replayed` are also timed as replays of a CUDA graph; a phase that is only the
    backward pass of a graph built before cannot be captured.
    """
    results = {subject.name: Measured() for subject in subjects}
    load = _OtherLoad()
    with thread_count(threads), device.measuring():
        for phase in phases:
            prepared = dict(_prepared(subjects, phase, device, results, progress))
            replays: dict[str, Callable[[], object] | None] = {}
            if phase in replayed:
                replays = {
                    name: _replay_of(call, device, results[name])
                    for name, (call, _) in prepared.items()
                }
            with load:
                for number in range(rounds):
                    for name, (call, expected) in prepared.items():
                        progress(f"{phase}, round {number + 1} of {rounds}: {name}")
                        runs = number < _SLOW_ROUNDS or expected <= _SLOW_SECONDS
                        timings = device.timings(call, expected) if runs else []
                        _add_round(results[name], phase, timings)
                        if runs and (replay := replays.get(name)):
                            found = results[name].replays.setdefault(phase, [])
                            found.extend(device.timings(replay, expected))
            del replays
            if phase == memory_phase:
                for name, (call, _) in prepared.items():
                    results[name].peak_extra_bytes = device.peak_extra_bytes(call)
    return Measurements(results, load.busy_cores())


def _add_round(measured: Measured, phase: str, timings: Sequence[float]) -> None:
    median = statistics.median(timings) if timings else None
    measured.seconds.setdefault(phase, []).append(median)
    measured.timings.setdefault(phase, []).extend(timings)


def _replay_of(
    call: Callable[[], object], device: Device, measured: Measured
) -> Callable[[], object] | None:
    """The replay of the call's graph; without one, the row says why."""
    try:
        return device.graph_of(call)
    except Exception as error:
        reason = str(error).strip().splitlines() or [""]
        measured.replay_note = f"{type(error).__name__}: {reason[0]}"
        return None


class _OtherLoad:
    """Cores kept busy by anything but this process, averaged over the times spent inside."""

    def __init__(self) -> None:
        self._busy_seconds = self._seconds = 0.0

    def __enter__(self) -> None:
        self._before = _machine_and_own_cpu_seconds(), time.perf_counter()

    def __exit__(self, *exception: object) -> None:
        (machine, own), start = self._before
        machine_now, own_now = _machine_and_own_cpu_seconds()
        self._busy_seconds += (machine_now - machine) - (own_now - own)
        self._seconds += time.perf_counter() - start

    def busy_cores(self) -> float:
        return max(0.0, self._busy_seconds / self._seconds) if self._seconds else 0.0


def _machine_and_own_cpu_seconds() -> tuple[float, float]:
    """CPU time of the whole machine, stolen time included, and of this process."""
    own = time.process_time()
    try:
        ticks = [int(text) for text in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    except (OSError, ValueError):  # not Linux: the others are unknown and count as idle
        return own, own
    user, nice, system, _idle, _iowait, irq, softirq, steal = ticks
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK"), own


def load_warning(other_busy_cores: float) -> str:
    """A line that says the machine was not quiet; empty if it was."""
    if other_busy_cores < _BUSY_CORES:
        return ""
    return (
        f"Other processes kept {other_busy_cores:.1f} cores busy meanwhile: do not trust these "
        "figures, measure again on a quiet machine."
    )


def _prepared(
    subjects: Sequence[Subject],
    phase: str,
    device: Device,
    results: Mapping[str, Measured],
    progress: Callable[[str], object],
) -> Iterator[tuple[str, tuple[Callable[[], object], float]]]:
    """Each subject's call, warmed up, and the seconds that it takes."""
    for subject in subjects:
        if results[subject.name].note:
            continue
        progress(f"{phase}, warm-up: {subject.name}")
        try:
            call = subject.prepare(phase)
            seconds = device.warm_up(call)
        except NotInstalled as error:
            results[subject.name].note = str(error)
            continue
        except Exception as error:
            if not subject.may_fail:
                raise
            reason = str(error).strip().splitlines() or [""]
            results[subject.name].note = f"failed: {type(error).__name__}: {reason[0]}"
            continue
        yield subject.name, (call, seconds)


def row_label(name: str, p: float | None) -> str:
    """How tables call a row."""
    return name if p is None else f"{name} p={p:g}"


def ratio(numerator: Samples, denominator: Samples) -> Samples:
    """Ratio per round; None where either side was not timed."""
    pairs = zip(numerator, denominator, strict=True)
    return [above / below if above and below else None for above, below in pairs]


def spread(samples: Sequence[float | None]) -> Spread | None:
    """Median, 20th and 80th percentile; None without samples."""
    present = [sample for sample in samples if sample is not None]
    if not present:
        return None
    if len(present) == 1:
        return dict.fromkeys(("median", "p20", "p80"), present[0])
    fifths = statistics.quantiles(present, n=5, method="inclusive")
    return {"median": statistics.median(present), "p20": fifths[0], "p80": fifths[-1]}


def relative(own: Measured, peer: Measured, phases: Sequence[str]) -> dict[str, Spread | None]:
    """By phase, how many times the peer's seconds are ours, round by round."""
    return {phase: spread(ratio(own.seconds[phase], peer.seconds[phase])) for phase in phases}


def measure_rows(
    calls: Mapping[Key, Prepare],
    phases: Sequence[str],
    figures: Callable[[Key, Mapping[Key, Measured]], Mapping[str, Any]],
    *,
    rounds: int,
    device: Device,
    progress: Callable[[str], object],
    compiled: bool = False,
    may_fail: Collection[str] = (),
    **options: Any,
) -> dict[str, Any]:
    """What a result says of any measurement: where and how, and its rows.

    `calls` has what each row's subject prepares for a phase, `figures` what a row says besides its
    times, from all subjects' measurements. Rows whose name is in `may_fail` may raise. `compiled`
    is for whoever has a compiled peer, and changes nothing here; `options` are those of
    `measure_interleaved`.
    """
    subjects = [
        Subject(row_label(*key), prepare, may_fail=key[0] in may_fail)
        for key, prepare in calls.items()
    ]
    measured = measure_interleaved(
        subjects, phases, rounds=rounds, device=device, progress=progress,
        **{"memory_phase": "total", **options},
    )  # fmt: skip
    found = {key: measured.subjects[row_label(*key)] for key in calls}
    return {
        "device": device.kind,
        "rounds": rounds,
        "other_busy_cores": round(measured.other_busy_cores, 2),
        "rows": [
            {"name": key[0], "p": key[1], **found[key].figures(), **figures(key, found)}
            for key in calls
        ],
    }


def print_replays(result: Mapping[str, Any], console: Console) -> None:
    """A table of calls and replays of their CUDA graphs, where any were timed; and why not."""
    from rich.table import Table

    rows = [row for row in result["rows"] if row.get("replay_seconds")]
    if rows:
        phases = list(rows[0]["replay_seconds"])
        table = Table("ms", title="Calls, and replays of their CUDA graphs: the kernels alone")
        for phase in phases:
            table.add_column(f"{phase}:\ncall", justify="right")
            table.add_column("\nreplay", justify="right")
        for row in rows:
            cells = []
            for phase in phases:
                for times in (row["seconds"], row["replay_seconds"]):
                    found = times.get(phase)
                    cells.append("-" if found is None else f"{1e3 * found['median']:.3g}")
            table.add_row(row_label(row["name"], row["p"]), *cells)
        console.print(table)
    for row in result["rows"]:
        if row.get("replay_note"):
            label = row_label(row["name"], row["p"])
            console.print(f"{label}: no CUDA graph: {row['replay_note']}", markup=False)


def environment(device: Device) -> dict[str, Any]:
    """What a figure depends on: command, date, commit, versions, device."""
    build = extension.build_info()
    return {
        "command": _command(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": build.get("commit", ""),
        "versions": {
            "fused_dropout": fused_dropout.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "compiler": build.get("compiler", ""),
            **device.versions(),
        },
        "device": {
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "isa": extension.current_isa(),
            "torch_isa": torch.backends.cpu.get_cpu_capability(),
            **device.facts(),
        },
        "variables": {name: os.environ.get(name) for name in VARIABLES},
    }


def instruction_sets() -> str:
    """A line on the instructions of our kernels and of the peers, for beside the tables."""
    forced = {name: value for name in VARIABLES if (value := os.environ.get(name))}
    settings = ", ".join(f"{name}={value}" for name, value in forced.items()) or "nothing is forced"
    line = (
        f"Instruction sets: {extension.current_isa()} in our kernels, "
        f"{torch.backends.cpu.get_cpu_capability()} in torch's ({settings})."
    )
    if forced and len(forced) < len(VARIABLES):
        unset = ", ".join(name for name in VARIABLES if name not in forced)
        line += f" Not set: {unset}; so peers may use other instructions than our kernels."
    return line


def _command() -> str:
    program = Path(sys.argv[0]).name
    shown = "fused-dropout" if program == "__main__.py" else program
    return shlex.join([shown, *sys.argv[1:]])


def json_document(
    results: Sequence[Mapping[str, Any]], device: Device = CPU, *, key: str = "results"
) -> bytes:
    """The environment and the results as JSON; see the module's docstring for the keys."""
    document = {**environment(device), key: list(results)}
    return (json.dumps(document, indent=1) + "\n").encode()
