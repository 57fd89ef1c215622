"""Prints predictions."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from .block import Launch
from .goals import goal_of, misses, totals
from .names import demangle, short_name
from .predict import PredictedLaunch, Prediction
from .registers import WARP

SHOWN_INSTRUCTIONS = 14
WIDTH = 180  # of what is not printed on a terminal
CAPTION = (
    "Predicted: by a model that no GPU has calibrated, so the error of times and shares is "
    "unknown. Slots (instructions of a warp, in lanes' terms) and wavefronts are counted in "
    "executed machine code, for each element or, of products, each 128 columns of a pair of row "
    "and output."
)


def time_text(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.2f} ms"


def table_of(predictions: Sequence[Prediction]) -> Table:
    table = Table(title="Predicted for an H200", caption=CAPTION)
    table.add_column("case", no_wrap=True)
    counted = ("launches", "slots", "main loop", "the rest", "wavefronts")
    for heading in (*counted, "predicted share", "of floor", "predicted time", "ratio to peer"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in predictions:
        case, goal = one.case, goal_of(one.case)
        per_unit, main = one.slots_per_unit, one.main_slots_per_unit
        is_product = case.floor == "FFMA"
        wavefronts = sum(launch.wavefronts for launch in one.launches) * WARP / case.units
        table.add_row(
            case.name,
            str(len(one.launches)),
            f"{per_unit:.1f}",
            f"{main:.1f}" if is_product else "",
            f"{per_unit - main:.1f}" if is_product else "",
            f"{wavefronts:.2f}",
            f"{one.share:.3f}" + (f" (goal {goal.share})" if one.share < goal.share else ""),
            f"{case.floor} {time_text(case.floor_seconds)}",
            time_text(one.seconds),
            f"{one.seconds / case.peer.seconds:.2f} {case.peer.name}",
            style="red" if misses(one) else None,
        )
    for total in totals(predictions):
        texts = [
            "",
            "",
            "",
            "",
            "",
            "",
            time_text(total.seconds),
            f"(goal {time_text(total.one.seconds)})",
        ]
        table.add_row(total.one.name, str(total.launches), *texts)
    return table


def _dimensions(launch: Launch) -> str:
    return f"{launch.blocks} x {launch.warps * WARP}"


def details_of(prediction: Prediction) -> Table:
    """What each launch of a case does, for those who write its kernels."""
    table = Table("kernel", title=prediction.case.name)
    for heading in ("blocks x threads", "registers", "shared", "blocks/SM", "slots/unit"):
        table.add_column(heading, justify="right")
    for heading in ("predicted cycles", "predicted time", "waits of a warp", "instructions"):
        table.add_column(heading)
    for one in prediction.launches:
        kernel = one.launch.kernel
        table.add_row(
            short_name(demangle([kernel.name])[0]),
            _dimensions(one.launch),
            str(kernel.registers),
            str(one.launch.shared),
            str(one.resident),
            f"{one.slots * WARP / prediction.case.units:.2f}",
            f"{one.cycles:.0f}",
            time_text(one.seconds),
            _waits(one),
            ", ".join(
                f"{n / one.launch.warps:.0f} {kind}" for kind, n in one.opcodes.most_common(14)
            ),
        )
    return table


def _mix(one: PredictedLaunch) -> str:
    """What a warp executes most often."""
    most = one.opcodes.most_common(SHOWN_INSTRUCTIONS)
    return ", ".join(f"{n / one.launch.warps:.0f} {kind}" for kind, n in most)


def _waits(one: PredictedLaunch) -> str:
    """Shares of the time that warps live."""
    total = sum(one.simulated.waits.values()) + one.simulated.issued
    parts = [f"issue {one.simulated.issued / total:.0%}"]
    return ", ".join([*parts, *(f"{k} {n / total:.0%}" for k, n in one.simulated.waits.items())])


def print_report(predictions: Sequence[Prediction], details: bool) -> list[str]:
    """Prints the tables; the goals that are missed."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    if details:
        for prediction in predictions:
            console.print(details_of(prediction))
    console.print(table_of(predictions))
    missed = [miss for prediction in predictions for miss in misses(prediction)]
    return missed + [miss for total in totals(predictions) for miss in total.misses()]
