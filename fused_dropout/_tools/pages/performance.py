"""docs/performance.md's tables and docs/pictures/performance.png, from bench/results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fused_dropout._tools.bench.columns import three_digits
from fused_dropout._tools.bench.harness import OURS
from fused_dropout._tools.pages.markdown import with_tables
from fused_dropout._tools.pages.performance_tables import (
    COMPILED,
    DENSE,
    INSTRUCTION_SETS,
    NAIVE,
    Result,
    per_instruction_set,
    performance_tables,
    read,
)
from fused_dropout._tools.pictures import png_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE = "performance.png"
# From the top: a row's name and p, its label, its colour. Blue and orange differ for every eye.
_BARS = (
    ((NAIVE, 0.5), "naive PyTorch", "#d9730d"),
    ((COMPILED, 0.5), "naive, torch.compile", "#f2b26b"),
    ((OURS, 0.1), "fused_dropout, p = 0.1", "#6aaed6"),
    ((OURS, 0.5), "fused_dropout, p = 0.5", "#1f5fa8"),
    ((DENSE, None), "dense layer, no masks", "#8a8f98"),
)


def write_performance(docs: Path) -> None:
    """Rewrite the tables of the page between their marks, and draw the picture."""
    results = docs.parent / "bench" / "results"
    page = docs / "performance.md"
    page.write_text(with_tables(page.read_text(), performance_tables(results)))
    (docs / "pictures" / PICTURE).write_bytes(performance_picture(picture_sources(results)))


def picture_sources(results: Path) -> list[Path]:
    """The files that the picture shows."""
    return list(per_instruction_set(results, "dropconnect").values())


def performance_picture(sources: Sequence[Path]) -> bytes:
    """A bar for each DropConnect layer at the paper's shape, a panel for each file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 3.5), layout="constrained")
    panels = figure.subplots(1, len(sources), sharey=True, squeeze=False)[0]
    for axes, path in zip(panels, sources, strict=True):
        document = read(path)
        result = document["results"][0]
        _draw(axes, result)
        isa = INSTRUCTION_SETS[document["device"]["isa"]]
        axes.set_title(f"{isa}, {document['device']['threads']} cores", fontsize=11)
    figure.suptitle(
        f"One DropConnect layer, {result['in_features']} to {result['out_features']} features, "
        f"batch {result['batch']}, fp32: forward and all gradients",
        fontsize=12.5,
    )
    figure.supxlabel("milliseconds (logarithmic scale; shorter is better)", fontsize=10)
    return png_of(figure, b"".join(path.read_bytes() for path in sources), dpi=160)


def _draw(axes: Axes, result: Result) -> None:
    rows = {(row["name"], row["p"]): row for row in result["rows"]}
    times = [1e3 * rows[key]["seconds"]["total"]["median"] for key, _, _ in _BARS]
    places = range(len(_BARS), 0, -1)
    axes.barh(places, times, color=[colour for _, _, colour in _BARS], height=0.72)
    for place, time in zip(places, times, strict=True):
        label = axes.text(1.12 * time, place, f"{three_digits(time)} ms", va="center", fontsize=10)
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.0})
    axes.set_yticks(places, [label for _, label, _ in _BARS], fontsize=10.5)
    axes.set_xscale("log")
    axes.set_xlim(1, 22000)  # room for the longest bar's number
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(True, axis="x", which="major", color="#d8dde3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
