"""The tables that benchmarks print: a row for each subject, a column for each figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fused_dropout._tools.bench.harness import Spread, load_warning, row_label

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

Row = Mapping[str, Any]
Result = Mapping[str, Any]


class Column(NamedTuple):
    """One figure of the rows."""

    heading: str
    cell: Callable[[Row], str]


def milliseconds(phase: str) -> Column:
    """The time of a phase."""
    return Column(f"{phase}\nms", lambda row: three_digits(1e3 * row["seconds"][phase]["median"]))


def times(heading: str, figure: str, phase: str = "total", *, separator: str = " ") -> Column:
    """A ratio of a phase with its spread; "-" where the row has none."""

    def cell(row: Row) -> str:
        found: Spread | None = (row.get(figure) or {}).get(phase)
        if found is None:
            return "-"
        median, low, high = (three_digits(found[key], 2) for key in ("median", "p20", "p80"))
        return f"{median}x{separator}({low}-{high})"

    return Column(heading, cell)


def _peak(row: Row) -> str:
    peak = row["peak_extra_bytes"]
    return "?" if peak is None else f"{peak / 2**20:.1f}"


PEAK = Column("peak\nextra MiB", _peak)


def three_digits(value: float, most_decimals: int = 6) -> str:
    """Three significant digits, or all before the point; no exponent."""
    decimals = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:.{min(max(decimals, 0), most_decimals)}f}"


def shape_text(result: Result) -> str:
    """Which measurement a goal is about: its shape and dtype."""
    return f"{' x '.join(map(str, result['shape']))} {result['dtype']}"


def result_table(result: Result, title: str, columns: Sequence[Column]) -> Table:
    """All rows; those without figures are empty, and `print_remarks` says why."""
    from rich.table import Table

    table = Table(title=title)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    for row in result["rows"]:
        cells = [] if row["note"] else [column.cell(row) for column in columns]
        table.add_row(row_label(row["name"], row["p"]), *cells)
    return table


def print_remarks(result: Result, console: Console) -> None:
    """Why rows have no figures, and a warning if the machine was busy."""
    if warning := load_warning(result["other_busy_cores"]):
        console.print(warning, style="yellow")
    for row in result["rows"]:
        if row["note"]:
            console.print(f"{row['name']}: {row['note']}", markup=False)


def printed(
    title: Callable[[Result], str], columns: Sequence[Column]
) -> Callable[[Result, Console], None]:
    """What prints a result as one table with these columns."""

    def print_result(result: Result, console: Console) -> None:
        console.print(result_table(result, title(result), columns))
        print_remarks(result, console)

    return print_result
