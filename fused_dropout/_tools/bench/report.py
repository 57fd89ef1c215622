"""What the scripts of bench/ have in common: goals, their table, saved results, the command line.

A script says what it measures on each device and which goals that has. Harness, tables and command
line are here and in harness.py and columns.py:

    SETUPS = {
        "cpu": Setup("blur-", (partial(measure, SMALL), partial(measure, LARGE)), (
            Goal(0, 0.5, "speedup_over_naive", at_least=20),  # of the first measurement
            Goal(1, 0.5, "times_dense", at_most=3),           # of the second
        )),
        "cuda": Setup(...),
    }

    FOLDER = results_beside(__file__)
    print_result = printed(result_title, COLUMNS)
    SCRIPT = Script(__doc__, SETUPS, FOLDER, print_result, shape_text, result_title)
    main = partial(run_script, SCRIPT)

`make bench` runs the files that define SCRIPT. A measurement is called with `rounds`, `compiled`,
`device` and `progress` and returns a result, a dictionary ready for JSON; `measure_rows` makes all
of it but what the problem was. Its "rows" are dictionaries with "name" and "p" (which tell them
apart), "note" (why there are no figures, or ""), "seconds" ({phase: {median, p20, p80}}, for the
plot), "replay_seconds" and "replay_note" (of CUDA graphs), and the figures that goals are about:
numbers, or such tables per phase. `measure` in dropconnect.py documents one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fused_dropout._tools.bench.columns import Result
from fused_dropout._tools.bench.devices import DEVICES, Device
from fused_dropout._tools.bench.find_device import find_device
from fused_dropout._tools.bench.harness import (
    OURS,
    instruction_sets,
    json_document,
    print_replays,
    row_label,
)
from fused_dropout._tools.common import (
    ArgumentError,
    explained_imports,
    output_file,
    positive_int,
    report_console,
    thread_count,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status
    from rich.table import Table


class _Unit(NamedTuple):
    words: str
    symbol: str
    size: float


_UNITS = {
    "peak_extra_bytes": _Unit("peak extra", " MiB", 2**20),
    "saved_bytes": _Unit("kept for backward", " bytes", 1),
    "share_of_ffma_floor": _Unit("share of the FFMA floor", " %", 0.01),
}


@dataclass(frozen=True)
class Goal:
    """A bound on one figure of our row at drop probability `p`, in the figure's unit."""

    result: int  # index into the results
    p: float | None
    figure: str  # key of the row
    at_least: float | None = None
    at_most: float | None = None
    phase: str = "total"  # of a figure that is a table

    def unit(self) -> _Unit:
        return _UNITS.get(self.figure, _Unit(self.figure.replace("_", " "), "x", 1))

    def text(self) -> str:
        unit = self.unit()
        relation = f">= {self.at_least:g}" if self.at_most is None else f"<= {self.at_most:g}"
        return f"{unit.words} {relation}{unit.symbol}"

    def measured(self, results: Sequence[Result]) -> float | None:
        """The figure that the goal is about; None if it was not measured."""
        rows = results[self.result]["rows"]
        row = next(row for row in rows if row["name"] == OURS and row["p"] == self.p)
        figure = row[self.figure]
        if isinstance(figure, Mapping):
            figure = (figure.get(self.phase) or {}).get("median")
        return None if figure is None else float(figure / self.unit().size)

    def met(self, results: Sequence[Result]) -> bool:
        """Whether the goal is met; what could not be measured does not meet it."""
        value = self.measured(results)
        if value is None:
            return False
        return (self.at_least is None or value >= self.at_least) and (
            self.at_most is None or value <= self.at_most
        )


@dataclass(frozen=True)
class Setup:
    """What a script does on one kind of device."""

    file_prefix: str  # of saved results, before the device's name
    measurements: Sequence[Callable[..., dict[str, Any]]]
    goals: Sequence[Goal] = ()  # without any, figures are shown and not judged


@dataclass(frozen=True)
class Script:
    """A script of bench/ but for its command line."""

    doc: str  # the script's docstring, whose first line --help shows
    setups: Mapping[str, Setup]  # by kind of device
    folder: Path  # for saved results
    print_result: Callable[[Result, Console], None]
    shape: Callable[[Result], str]
    title: Callable[[Result], str]


def results_beside(script: str) -> Path:
    """Where a script of bench/ saves its results."""
    return Path(script).parent / "results"


def run_script(script: Script, argv: Sequence[str] | None = None) -> int:
    """Measure, print results and goals, save them where asked; 1 if a goal is missed."""
    parser = _parser(script)
    args = parser.parse_args(argv)
    if args.save and find_spec("matplotlib") is None:
        parser.error("--save needs matplotlib: pip install 'fused_dropout[demo]'")
    setup = script.setups[args.device]
    try:
        with explained_imports("tools"), thread_count(args.threads):
            device = find_device(args.device)
            run = _measure_and_save if args.save else _measure_and_print
            results = run(script, setup, device, args)
    except ArgumentError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    return 0 if all(goal.met(results) for goal in setup.goals) else 1


def _parser(script: Script) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=script.doc.splitlines()[0])
    add = parser.add_argument
    add("--device", choices=[kind for kind in DEVICES if kind in script.setups], default="cpu")
    add("--save", action="store_true", help="write JSON and PNG to the folder of --results")
    add("--results", type=Path, metavar="FOLDER", help=f"default {script.folder.name}/")
    add("--no-compile", action="store_true", help="leave out torch.compile")
    add("--threads", type=positive_int, help="CPU threads (default: torch's)")
    add("--repeats", type=positive_int, default=15, help="rounds (default 15)")
    return parser


def _measure_and_save(
    script: Script, setup: Setup, device: Device, args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Write <folder>/<prefix><device>-<date>.json and .png; both are opened first."""
    folder = args.results or script.folder
    stem = f"{setup.file_prefix}{device.file_name()}-{date.today().isoformat()}"
    with suppress(OSError):  # opening the files says what is wrong
        folder.mkdir(parents=True, exist_ok=True)
    with (
        output_file("--save", folder / f"{stem}.json") as write_json,
        output_file("--save", folder / f"{stem}.png") as write_png,
    ):
        results = _measure_and_print(script, setup, device, args)
        write_json(json_document(results, device))
        write_png(plot(results[0], f"{script.title(results[0])}, {device.name()}"))
    print(f"wrote {folder}/{stem}.json and .png")
    return results


def _measure_and_print(
    script: Script, setup: Setup, device: Device, args: argparse.Namespace
) -> list[dict[str, Any]]:
    console = report_console()
    console.print(device.name())
    console.print(instruction_sets(), markup=False)
    results = []
    for number, measure in enumerate(setup.measurements, 1):
        with report_console(stderr=True).status("") as status:
            where = f"measurement {number} of {len(setup.measurements)}: "
            result = measure(
                rounds=args.repeats,
                compiled=not args.no_compile,
                device=device,
                progress=partial(_show, status, where),
            )
        script.print_result(result, console)
        print_replays(result, console)
        results.append(result)
    if setup.goals:
        console.print(goal_table(setup.goals, results, script.shape))
    else:
        console.print(f"no goals are stated for {device.kind}")
    return results


def _show(status: Status, where: str, text: str) -> None:
    status.update(where + text)


def goal_table(
    goals: Sequence[Goal], results: Sequence[Result], shape: Callable[[Result], str]
) -> Table:
    """One row per goal: what is asked, what was measured, whether it is met."""
    from rich.table import Table

    table = Table("shape", "p", "goal", "measured", "met", title="Goals")
    for goal in goals:
        value = goal.measured(results)
        shown = "not measured" if value is None else f"{value:.3g}"
        met = "[green]yes[/]" if goal.met(results) else "[red]NO[/]"
        p = "" if goal.p is None else f"{goal.p:g}"
        table.add_row(shape(results[goal.result]), p, goal.text(), shown, met)
    return table


def plot(result: Result, title: str) -> bytes:
    """A PNG: bars of the milliseconds of each phase and row, on a logarithmic scale."""
    from matplotlib.figure import Figure

    rows = [row for row in result["rows"] if not row["note"]]
    phases = list(rows[0]["seconds"])
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(rows)
    for index, row in enumerate(rows):
        label = row_label(row["name"], row["p"])
        milliseconds = [1e3 * row["seconds"][phase]["median"] for phase in phases]
        positions = [place + index * width for place in range(len(phases))]
        bars = axes.bar(positions, milliseconds, width, label=label)
        labels = [f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in milliseconds]
        axes.bar_label(bars, labels, fontsize=7)
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(phases))], phases)
    axes.set_yscale("log")
    axes.set_ylabel("milliseconds (lower is better)")
    axes.set_title(title)
    axes.legend()
    content = BytesIO()
    figure.savefig(content, dpi=120, format="png")
    return content.getvalue()
