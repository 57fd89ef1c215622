"""`--plot`: seconds of ours, the peers and the floor over what was swept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import product
from typing import Any

from fused_dropout._tools.bench.family import FLOOR_ROLE, OURS_ROLE
from fused_dropout._tools.bench.harness import row_label

Record = Mapping[str, Any]
_NUMBERS = ("size", "p", "threads")  # sweeps that are drawn as lines, the others as bars
_OPS_IN_ONE_COLUMN = 4
_STYLES: dict[str, dict[str, Any]] = {
    OURS_ROLE: {"color": "C0", "linewidth": 2.5, "zorder": 3},
    FLOOR_ROLE: {"color": "0.4", "linestyle": "--"},
}


def plot(records: Sequence[Record], sweep: str | None, title: str) -> bytes:
    """A PNG with the phases of an op side by side, and of many ops two in a row."""
    from matplotlib.figure import Figure

    measured = [record for record in records if record["seconds"] is not None]
    ops = list(dict.fromkeys(record["op"] for record in measured))
    phases = list(dict.fromkeys(record["phase"] for record in measured))
    beside = 1 if len(ops) <= _OPS_IN_ONE_COLUMN else 2
    rows, columns = max(1, -(-len(ops) // beside)), max(1, beside * len(phases))
    figure = Figure(figsize=(4.5 * columns, 3 * rows + 0.6), layout="constrained")
    panels = list(product(ops, phases))
    for number, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        op, phase = panels[number] if number < len(panels) else ("", "")
        wanted = [r for r in measured if (r["op"], r["phase"]) == (op, phase)]
        if not wanted:
            axes.set_axis_off()
            continue
        (_lines if sweep in _NUMBERS else _bars)(axes, wanted, sweep)
        axes.set_yscale("log")
        axes.set_ylabel("milliseconds")
        axes.set_title(f"{op}, {phase}", fontsize=10)
        axes.legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    content = BytesIO()
    figure.savefig(content, dpi=110, format="png")
    return content.getvalue()


def _by_subject(records: Sequence[Record], sweep: str | None) -> dict[str, list[Record]]:
    """A subject is told by its p, where the plot is not about p."""
    found: dict[str, list[Record]] = {}
    for record in records:
        label = record["name"] if sweep else row_label(record["name"], record["p"])
        found.setdefault(label, []).append(record)
    return found


def _milliseconds(records: Sequence[Record]) -> list[float]:
    return [1e3 * record["seconds"]["median"] for record in records]


def _lines(axes: Any, records: Sequence[Record], sweep: str | None) -> None:
    for number, (label, own) in enumerate(_by_subject(records, sweep).items()):
        places = [record["value"] for record in own]
        style = _STYLES.get(own[0]["role"], {"color": f"C{number}"})
        axes.plot(places, _milliseconds(own), marker=".", label=label, **style)
    axes.set_xlabel({"size": "elements"}.get(str(sweep), sweep))
    if sweep == "size":
        axes.set_xscale("log", base=2)


def _bars(axes: Any, records: Sequence[Record], sweep: str | None) -> None:
    subjects = _by_subject(records, sweep)
    values = list(dict.fromkeys(record["value"] for record in records))
    width = 0.8 / len(subjects)
    for number, (label, own) in enumerate(subjects.items()):
        places = [values.index(record["value"]) + (number + 0.5) * width - 0.4 for record in own]
        color = _STYLES.get(own[0]["role"], {}).get("color", f"C{number}")
        axes.bar(places, _milliseconds(own), width, label=label, color=color)
    labels = ["" if value is None else str(value).replace(" ", "\n") for value in values]
    tilt = {"rotation": 40, "ha": "right"} if len(values) > 3 else {}
    axes.set_xticks(range(len(values)), labels, fontsize=7, **tilt)
