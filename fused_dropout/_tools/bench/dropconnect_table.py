"""Prints a result of `measure` in dropconnect.py as tables, with how to read them below."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from fused_dropout._tools.bench.dropconnect import PHASES
from fused_dropout._tools.bench.harness import Spread, load_warning, row_label

Row = Mapping[str, Any]
Result = Mapping[str, Any]


class _Column(NamedTuple):
    heading: str
    cell: Callable[[Row], str]


def print_result(result: Result, console: Console) -> None:
    """Print one shape, what was skipped or failed, and a warning if the machine was busy."""
    for title, columns in _TABLES[result["device"]]:
        console.print(_table(result, title, columns))
    console.print(_EXPLAINED[result["device"]](result))
    if result["mask"] not in ("example", "row", 1):
        console.print("The naive layer draws a mask per example all the same.")
    if warning := load_warning(result["other_busy_cores"]):
        console.print(warning, style="yellow")
    for row in result["rows"]:
        if row["note"]:
            console.print(f"{row['name']}: {row['note']}", markup=False)


def shape_text(result: Result) -> str:
    """The shape of a result, such as "128 x 1024 x 1024"."""
    return "{batch} x {out_features} x {in_features}".format_map(result)


def result_title(result: Result) -> str:
    """What a table or a plot of the result is about."""
    return f"DropConnect linear, B x O x I = {shape_text(result)}, {result['dtype']}"


def _table(result: Result, about: str, columns: Sequence[_Column]) -> Table:
    table = Table(title=f"{result_title(result)}, mask={result['mask']}{about}")
    table.add_column("layer", no_wrap=True)
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for row in result["rows"]:
        cells = [] if row["note"] else [column.cell(row) for column in columns]
        table.add_row(row_label(row["name"], row["p"]), *cells)
    return table


def _milliseconds(phase: str) -> _Column:
    def cell(row: Row) -> str:
        return _three_digits(1e3 * row["seconds"][phase]["median"])

    return _Column(f"{phase}\nms", cell)


def _microseconds(phase: str) -> _Column:
    def cell(row: Row) -> str:
        found = row["seconds"][phase]
        median, low, high = (_three_digits(1e6 * found[key]) for key in ("median", "p20", "p80"))
        return f"{median}\n({low}-{high})"

    return _Column(f"{phase}\nus", cell)


def _ratio(heading: str, figure: str) -> _Column:
    return _Column(heading, lambda row: _total(row[figure]))


def _peak(row: Row) -> str:
    peak = row["peak_extra_bytes"]
    return "?" if peak is None else f"{peak / 2**20:.1f}"


def _share_of_floor(row: Row) -> str:
    share = row["share_of_ffma_floor"]
    return "?" if share is None else f"{share['total']['median']:.1%}"


_PEAK = _Column("peak\nextra MiB", _peak)
_SPEEDUPS = (
    _ratio("faster\nthan naive", "speedup_over_naive"),
    _ratio("faster than\ncompiled", "speedup_over_compiled"),
)
_TABLES: dict[str, list[tuple[str, tuple[_Column, ...]]]] = {
    "cpu": [
        (
            "",
            (
                *map(_milliseconds, PHASES),
                _PEAK,
                *_SPEEDUPS,
                _ratio("times dense\n= floor", "times_dense"),
            ),
        ),
    ],
    "cuda": [
        (
            "",
            (
                *map(_microseconds, PHASES),
                _Column("share of\nFFMA floor", _share_of_floor),
                _PEAK,
            ),
        ),
        (
            ": ratios",
            (
                *_SPEEDUPS,
                _ratio("times\ndense", "times_dense"),
                _ratio("times the paper's\nlower bound", "times_lower_bound"),
            ),
        ),
    ],
}


def _explain_cpu(result: Result) -> str:
    rate = result["dense_multiply_adds_per_second"] / 1e9
    return (
        "Ratios are of 'total' (forward + all gradients): median of the rounds (p20-p80). The "
        "floor is three passes of B*O*I multiply-adds at the rate that the dense layer reaches "
        f"here, {rate:.3g} G/s; so the ratio to dense is the ratio to the floor."
    )


def _explain_cuda(result: Result) -> str:
    rate = result["multiply_add_rate"]
    floor = "no floor is known for this dtype or this GPU's clock"
    if rate is not None:
        floor = f"the FFMA floor is B*O*I multiply-adds per pass at {rate['text']}"
    return (
        "Times: one call between CUDA events with a cold L2 cache, median of all (p20-p80). Ratios "
        "and share are of 'total' (forward + all gradients); ratios are taken within a round, "
        f"median of the rounds (p20-p80). Assumed: {floor}. dense is cuBLAS, with TF32 off; the "
        "paper's lower bound adds reading B*O*I mask bits in each pass."
    )


_EXPLAINED = {"cpu": _explain_cpu, "cuda": _explain_cuda}


def _total(ratios: Mapping[str, Spread] | None) -> str:
    found = None if ratios is None else ratios.get("total")
    if found is None:
        return "-"
    median, low, high = (_three_digits(found[key], 2) for key in ("median", "p20", "p80"))
    return f"{median}x\n({low}-{high})"


def _three_digits(value: float, most_decimals: int = 6) -> str:
    """Three significant digits, or all before the point; no exponent."""
    decimals = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:.{min(max(decimals, 0), most_decimals)}f}"
