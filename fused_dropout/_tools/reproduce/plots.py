"""Pieces of the pictures: bars with their spread, curves with theirs, images in a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from fused_dropout._tools.pictures import png_of
from fused_dropout._tools.reproduce.experiment import Experiment, Setting
from fused_dropout._tools.reproduce.results import Results

if TYPE_CHECKING:  # matplotlib is imported when a picture is drawn: the list of names needs none
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind readers tell apart.
COLORS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c8c8c", "#000000")
_GRID = "#d8dde3"


def picture(experiment: Experiment, results: Results) -> bytes:
    """The picture of an experiment as a PNG file that carries the digest of its JSON file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=experiment.figure_size, layout="constrained")
    experiment.draw(figure, results)
    return png_of(figure, results.to_json(), dpi=90)


def labels_of(settings: Sequence[Setting], *names: str) -> dict[str, str]:
    """Labels by name, of the settings of these names; without any, of all."""
    return {
        setting.name: setting.label for setting in settings if not names or setting.name in names
    }


def draw_seeds(
    axes: Axes, results: Results, labels: Mapping[str, str], metric: str, *, colors: int = 7
) -> None:
    """A row for each setting in `labels`: every seed as a dot, their mean as a stroke.

    `colors`: how many there are before they begin again. A run that diverged has no dot.
    """
    for place, name in enumerate(labels):
        color = COLORS[place % colors]
        values = np.array(results.values(name, metric))
        axes.plot(values, np.full(len(values), place), "o", color=color, markersize=5, alpha=0.6)
        axes.plot([values.mean()], [place], "|", color=color, markersize=22, markeredgewidth=3)
    axes.set_yticks(range(len(labels)), list(labels.values()))
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.margins(x=0.12)
    decorate(axes)


def draw_errors_and_losses(
    error: Axes, loss: Axes, results: Results, labels: Mapping[str, str]
) -> None:
    """Beside each other what `training.final_figures` found on the test images."""
    draw_seeds(error, results, labels, "error")
    error.set_title("test error, %")
    draw_seeds(loss, results, labels, "loss")
    loss.set_yticklabels([])
    loss.set_title("test cross entropy, nats")


def draw_curves(
    axes: Axes,
    results: Results,
    labels: Mapping[str, str],
    curve: str,
    *,
    x: Sequence[float] | None = None,
    scale: float = 1.0,
) -> None:
    """A line for each setting in `labels`: the mean over seeds, and a band from least to most."""
    for place, (name, label) in enumerate(labels.items()):
        curves = scale * results.curves(name, curve)
        points = np.arange(1, curves.shape[1] + 1) if x is None else np.asarray(x)
        draw_band(axes, points, curves, label, COLORS[place % len(COLORS)])
    axes.legend(frameon=False, fontsize=9)
    decorate(axes)


def draw_band(axes: Axes, x: np.ndarray, curves: np.ndarray, label: str, color: str) -> None:
    """The mean of curves [seeds, points], and a band from the least to the most."""
    marker = "o" if curves.shape[1] < 30 else None
    axes.plot(x, curves.mean(0), color=color, label=label, marker=marker, markersize=3)
    axes.fill_between(x, curves.min(0), curves.max(0), color=color, alpha=0.18, linewidth=0)


def draw_images(axes: Axes, images: np.ndarray, columns: int) -> None:
    """Images [N, height, width] in a grid, with a line between them."""
    count, height, width = images.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (height + 1) + 1, columns * (width + 1) + 1), 128, np.uint8)
    for place, image in enumerate(images):
        top, left = place // columns * (height + 1) + 1, place % columns * (width + 1) + 1
        canvas[top : top + height, left : left + width] = image
    axes.imshow(canvas, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])


def decorate(axes: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    """A light grid behind, no frame."""
    axes.grid(True, axis=grid, color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
