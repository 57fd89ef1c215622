"""Does the DropConnect layer meet its goals here? Run: python bench/dropconnect_linear.py

Measures the shape of Table 1 in Wan et al. 2013 (batch 128, 1024 x 1024, fp32), which the naive
PyTorch layer can still run, and 128 x 4096 x 4096 (2 G connections per pass), which it cannot.
`--save` writes all figures as JSON and a plot as PNG to bench/results/. Exit status 1 if a goal is
missed.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from fused_dropout.benchmark import cpu_model, json_document
from fused_dropout.benchmark_dropconnect import OURS, PHASES, Problem, measure, print_result
from fused_dropout.cli import ArgumentError, output_file, positive_int, report_console
from fused_dropout.verify import thread_count

RESULTS = Path(__file__).parent / "results"
TABLE_1 = Problem(128, 1024, 1024, ps=(0.5, 0.1))
LARGE = Problem(128, 4096, 4096, ps=(0.5,))
_MIB = 2**20


@dataclass(frozen=True)
class Goal:
    """A bound on one figure of our row at drop probability `p`."""

    shape: int  # index into the measured shapes
    p: float
    figure: str  # "speedup_over_naive", "times_dense" (both of the total) or "peak_extra_bytes"
    at_least: float | None = None
    at_most: float | None = None

    def text(self) -> str:
        figure = self.figure.removesuffix("_bytes").replace("_", " ")
        unit = " MiB" if self.figure == "peak_extra_bytes" else "x"
        relation = f">= {self.at_least:g}" if self.at_most is None else f"<= {self.at_most:g}"
        return f"{figure} {relation}{unit}"

    def met(self, value: float | None) -> bool:
        """Whether a measured value meets the goal; what could not be measured does not."""
        if value is None:
            return False
        return (self.at_least is None or value >= self.at_least) and (
            self.at_most is None or value <= self.at_most
        )


GOALS = (
    Goal(0, 0.5, "speedup_over_naive", at_least=180),
    Goal(0, 0.5, "times_dense", at_most=3),
    Goal(0, 0.5, "peak_extra_bytes", at_most=40),
    Goal(0, 0.1, "speedup_over_naive", at_least=60),
    Goal(0, 0.1, "times_dense", at_most=10),
    Goal(0, 0.1, "peak_extra_bytes", at_most=40),
    Goal(1, 0.5, "times_dense", at_most=3),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--save", action="store_true", help=f"write JSON and PNG to {RESULTS.name}/"
    )
    parser.add_argument("--no-compile", action="store_true", help="leave out torch.compile")
    parser.add_argument("--threads", type=positive_int, help="CPU threads (default: torch's)")
    parser.add_argument("--repeats", type=positive_int, default=15, help="rounds (default 15)")
    args = parser.parse_args(argv)
    if args.save and find_spec("matplotlib") is None:
        parser.error("--save needs matplotlib: pip install 'fused_dropout[demo]'")

    try:
        with thread_count(args.threads):
            results = measure_and_save(args) if args.save else measure_and_print(args)
    except ArgumentError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    return 0 if all(goal.met(measured(goal, results)) for goal in GOALS) else 1


def measure_and_save(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Write bench/results/<cpu>-<threads>t-<date>.json and .png; both are opened first."""
    slug = re.sub(r"[^a-z0-9]+", "-", cpu_model().lower()).strip("-")
    stem = f"dropconnect-{slug}-{torch.get_num_threads()}t-{date.today().isoformat()}"
    with suppress(OSError):  # opening the files says what is wrong
        RESULTS.mkdir(exist_ok=True)
    with (
        output_file("--save", RESULTS / f"{stem}.json") as write_json,
        output_file("--save", RESULTS / f"{stem}.png") as write_png,
    ):
        results = measure_and_print(args)
        write_json(json_document(results))
        write_png(plot(results[0]))
    print(f"wrote {RESULTS.name}/{stem}.json and .png")
    return results


def measure_and_print(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure both shapes, print their tables and the goals."""
    console = report_console()
    console.print(cpu_model())
    with report_console(stderr=True).status("measuring") as status:
        table_1 = measure(
            TABLE_1, rounds=args.repeats, compiled=not args.no_compile, progress=status.update
        )
        large = measure(LARGE, rounds=args.repeats, naive=False, progress=status.update)
    results = [table_1, large]
    for result in results:
        print_result(result, console)
    console.print(goal_table(results))
    return results


def measured(goal: Goal, results: Sequence[Mapping[str, Any]]) -> float | None:
    """The figure that the goal is about; None if it was not measured."""
    rows = results[goal.shape]["rows"]
    row = next(row for row in rows if row["name"] == OURS and row["p"] == goal.p)
    figure = row[goal.figure]
    if figure is None:
        return None
    value: float = figure / _MIB if goal.figure == "peak_extra_bytes" else figure["total"]["median"]
    return value


def goal_table(results: Sequence[Mapping[str, Any]]) -> Table:
    """One row per goal: what is asked, what was measured, whether it is met."""
    table = Table("B x O x I", "p", "goal", "measured", "met", title="Goals")
    for goal in GOALS:
        value = measured(goal, results)
        shape = "{batch} x {out_features} x {in_features}".format_map(results[goal.shape])
        shown = "not measured" if value is None else f"{value:.3g}"
        met = "[green]yes[/]" if goal.met(value) else "[red]NO[/]"
        table.add_row(shape, f"{goal.p:g}", goal.text(), shown, met)
    return table


def plot(result: Mapping[str, Any]) -> bytes:
    """A PNG: bars of the milliseconds of each phase and layer, on a logarithmic scale."""
    from matplotlib.figure import Figure

    rows = [row for row in result["rows"] if not row["note"]]
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(rows)
    for index, row in enumerate(rows):
        label = row["name"] if row["p"] is None else f"{row['name']} p={row['p']:g}"
        milliseconds = [1e3 * row["seconds"][phase]["median"] for phase in PHASES]
        positions = [place + index * width for place in range(len(PHASES))]
        bars = axes.bar(positions, milliseconds, width, label=label)
        labels = [f"{value:.0f}" if value >= 100 else f"{value:.3g}" for value in milliseconds]
        axes.bar_label(bars, labels, fontsize=7)
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(PHASES))], PHASES)
    axes.set_yscale("log")
    axes.set_ylabel("milliseconds (lower is better)")
    shape = "{batch} x {out_features} x {in_features}".format_map(result)
    axes.set_title(f"DropConnect linear, B x O x I = {shape}, {result['dtype']}, {cpu_model()}")
    axes.legend()
    content = BytesIO()
    figure.savefig(content, dpi=120, format="png")
    return content.getvalue()


if __name__ == "__main__":
    sys.exit(main())
