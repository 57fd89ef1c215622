"""Prints a result of `measure` in dropconnect.py as tables, with how to read them below."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fused_dropout._tools.bench.columns import (
    PEAK,
    Column,
    Result,
    Row,
    milliseconds,
    print_remarks,
    result_table,
    three_digits,
    times,
)
from fused_dropout._tools.bench.dropconnect import PHASES

if TYPE_CHECKING:
    from rich.console import Console


def print_result(result: Result, console: Console) -> None:
    """Print one shape, what was skipped or failed, and a warning if the machine was busy."""
    for title, columns in _TABLES[result["device"]]:
        whole_title = f"{result_title(result)}, mask={result['mask']}{title}"
        console.print(result_table(result, whole_title, columns))
    console.print(_EXPLAINED[result["device"]](result))
    if result["mask"] not in ("example", "row", 1):
        console.print("The naive layer draws a mask per example all the same.")
    print_remarks(result, console)


def shape_text(result: Result) -> str:
    """The shape of a result, such as "128 x 1024 x 1024"."""
    return "{batch} x {out_features} x {in_features}".format_map(result)


def result_title(result: Result) -> str:
    """What a table or a plot of the result is about."""
    return f"DropConnect linear, B x O x I = {shape_text(result)}, {result['dtype']}"


def _microseconds(phase: str) -> Column:
    def cell(row: Row) -> str:
        found = row["seconds"][phase]
        median, low, high = (three_digits(1e6 * found[key]) for key in ("median", "p20", "p80"))
        return f"{median}\n({low}-{high})"

    return Column(f"{phase}\nus", cell)


def _ratio(heading: str, figure: str) -> Column:
    return times(heading, figure, separator="\n")


def _share_of_floor(row: Row) -> str:
    share = row["share_of_ffma_floor"]
    return "?" if share is None else f"{share['total']['median']:.1%}"


_SPEEDUPS = (
    _ratio("faster\nthan naive", "speedup_over_naive"),
    _ratio("faster than\ncompiled", "speedup_over_compiled"),
)
_TABLES: dict[str, list[tuple[str, tuple[Column, ...]]]] = {
    "cpu": [
        (
            "",
            (
                *map(milliseconds, PHASES),
                PEAK,
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
                Column("share of\nFFMA floor", _share_of_floor),
                PEAK,
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
