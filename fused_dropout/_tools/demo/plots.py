"""The demo's picture: training loss, test accuracy against time, and one mask."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

import fused_dropout
from fused_dropout._tools.demo.results import Results, Side
from fused_dropout._tools.pictures import png_of

_NAIVE = "#e08214"
_FUSED = "#2166ac"
_FUSED_ALL = "#1b9e77"
_DROPPED = "#eef2f6"
_MASK_CORNER = 64


def picture(results: Results, document: bytes) -> bytes:
    """The picture as the content of a PNG file; `document`: the results as JSON."""
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    loss, accuracy, mask = figure.subplots(1, 3, width_ratios=(1.1, 1.1, 1.0))
    _plot_loss(loss, results)
    _plot_accuracy(accuracy, results)
    _plot_mask(mask, results)
    speed_up = results.naive.layer_step / results.fused.layer_step
    hidden = results.settings.hidden
    figure.suptitle(
        f"DropConnect, {results.data.features}-{hidden}-{hidden}-10 on {results.data.name}, "
        f"batch {results.settings.batch_size}, p = {results.settings.p:g}: "
        f"fused layers {speed_up:.0f}x faster than naive ones",
        fontsize=13,
    )
    return png_of(figure, document, dpi=120)


def _plot_loss(axes: Axes, results: Results) -> None:
    naive, fused = results.naive.histories[0].losses, results.fused.histories[0].losses
    steps = range(1, len(naive) + 1)
    axes.plot(steps, naive, color=_NAIVE, linewidth=5, alpha=0.55, label="naive")
    axes.plot(steps, fused, color=_FUSED, linewidth=1.4, label="fused")
    axes.set_title("Training loss")
    axes.set_xlabel("training step")
    axes.set_ylabel("cross entropy")
    axes.set_ylim(bottom=0)
    _decorate(axes)


def _plot_accuracy(axes: Axes, results: Results) -> None:
    axes.set_xscale("log")
    _plot_accuracy_of(axes, results.naive, "naive", _NAIVE)
    _plot_accuracy_of(axes, results.fused, "fused", _FUSED)
    if results.fused_all is not None:
        history = results.fused_all
        seconds = [step * results.fused.step for step in history.evaluated_steps]
        label = f"fused, all {len(results.data.train_x)} examples"
        axes.plot(seconds, history.accuracies, "s-", color=_FUSED_ALL, markersize=4, label=label)
    axes.set_title(f"Test accuracy, {len(results.trained.train_x)} training examples")
    axes.set_xlabel("training time in seconds (steps x time of a step)")
    axes.set_ylabel("percent")
    axes.xaxis.set_major_formatter("{x:g}")
    _decorate(axes)


def _plot_accuracy_of(axes: Axes, side: Side, label: str, color: str) -> None:
    history = side.histories[0]
    seconds = [step * side.step for step in history.evaluated_steps]
    axes.plot(seconds, history.accuracies, "o-", color=color, markersize=4, label=label)


def _plot_mask(axes: Axes, results: Results) -> None:
    hidden, p = results.settings.hidden, results.settings.p
    mask = fused_dropout.mask((hidden, hidden), p, seed=results.settings.seed)
    corner = mask[:_MASK_CORNER, :_MASK_CORNER]
    colors = ListedColormap([_DROPPED, _FUSED])
    axes.imshow(corner.numpy(), cmap=colors, vmin=0, vmax=1, interpolation="nearest")
    kept = 100.0 * mask.double().mean().item()
    axes.set_title(f"Second layer, one example's mask\n{kept:.2f} % of the weights kept (blue)")
    axes.set_xlabel(f"input ({corner.shape[1]} of {hidden})")
    axes.set_ylabel(f"unit ({corner.shape[0]} of {hidden})")


def _decorate(axes: Axes) -> None:
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False)
    axes.grid(True, which="major", color="#d8dde3", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
