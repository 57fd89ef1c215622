"""Shows how far a training run is: a progress bar on a terminal, plain lines in a log."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from fused_dropout._tools.datasets import Dataset
from fused_dropout._tools.demo.training import History, LayerType, Settings, train

_SECONDS_BETWEEN_LINES = 15.0


def train_with_progress(
    console: Console, label: str, layer: LayerType, data: Dataset, settings: Settings
) -> History:
    """`train`, with its progress shown on `console` under the name `label`.

    The bar fits 80 columns: steps, loss, test accuracy, time left (in the end, time taken).
    """
    if not console.is_terminal:
        return train(layer, data, settings, _log_lines(console, label, settings.steps(data)))
    columns = (
        TextColumn("{task.description:19}"),
        BarColumn(bar_width=12),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f} test {task.fields[accuracy]}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(label, total=settings.steps(data), loss=0.0, accuracy="-")

        def on_step(history: History) -> None:
            loss, accuracy = history.losses[-1], _latest_accuracy(history)
            progress.update(task, advance=1, loss=loss, accuracy=accuracy)

        return train(layer, data, settings, on_step)


def _log_lines(console: Console, label: str, steps: int) -> Callable[[History], None]:
    last_line = time.perf_counter()

    def on_step(history: History) -> None:
        nonlocal last_line
        done, now = len(history.losses), time.perf_counter()
        if done < steps and now - last_line < _SECONDS_BETWEEN_LINES:
            return
        last_line = now
        left = f", {history.seconds / done * (steps - done):.0f} s left" if done < steps else ""
        console.print(
            f"{label}: step {done}/{steps}, loss {history.losses[-1]:.3f}, "
            f"test {_latest_accuracy(history)}, {history.seconds:.1f} s{left}",
            highlight=False,
        )

    return on_step


def _latest_accuracy(history: History) -> str:
    return f"{history.accuracies[-1]:.1f} %" if history.accuracies else "-"
