"""`fused-dropout demo`: the same network trained with naive DropConnect and with the fused layer.

Both networks start from the same weights and see the same batches, schedule and masks, so they end
at the same accuracy; the table shows what each cost. training.py holds the networks, plots.py
the picture.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from fused_dropout._tools.baselines import NaiveDropConnectLinear
from fused_dropout._tools.bench.harness import json_document
from fused_dropout._tools.common import (
    ArgumentError,
    output_file,
    positive_int,
    probability,
    report_console,
    thread_count,
)
from fused_dropout._tools.datasets import DataError, Dataset, load_digits, load_idx, subset
from fused_dropout._tools.demo import training as training
from fused_dropout._tools.demo.progress import train_with_progress
from fused_dropout._tools.demo.results import Results, Side
from fused_dropout._tools.demo.training import SameMaskNaiveLinear, Settings
from fused_dropout._tools.memory import available_bytes, peak_extra_bytes
from fused_dropout.nn import DropConnectLinear

_DIGITS_DEFAULTS = {"epochs": 12, "hidden": 512}
_IDX_DEFAULTS = {"epochs": 3, "hidden": 1024}
_IDX_SUBSET = 3072  # examples that the naive layer gets through in minutes
_MORE_MASK_DRAWS = 4
_NAIVE_BYTES_PER_CONNECTION = 12  # and example: masks, masked weights and gradients
_NETWORK_BYTES_PER_WEIGHT = 12  # the weight, its gradient and its momentum


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fused-dropout demo`."""
    add = parser.add_argument
    add(
        "--data",
        metavar="DIR",
        help="folder with the IDX files of MNIST or Fashion-MNIST (train-images-idx3-ubyte[.gz] "
        "and so on); default: the 8x8 digits bundled with scikit-learn",
    )
    add(
        "--subset",
        type=positive_int,
        metavar="N",
        help="training examples that both networks see, since the naive layer takes seconds a step"
        f"; ours is then trained on all as well (default: {_IDX_SUBSET} with --data, else all)",
    )
    add("--epochs", type=positive_int, metavar="N", help="default: 12, or 3 with --data")
    add(
        "--hidden",
        type=positive_int,
        metavar="N",
        help="units in each hidden layer (default: 512, or 1024 with --data)",
    )
    add("--batch-size", type=positive_int, default=128, metavar="N", help="default: 128")
    add("--p", "-p", type=probability, default=0.5, help="drop probability (default: 0.5)")
    add("--lr", type=_positive_float, default=0.1, help="peak learning rate (default: 0.1)")
    add("--seed", type=_seed, default=0, help="the first seed (default: 0)")
    add(
        "--seeds",
        type=positive_int,
        default=1,
        metavar="N",
        help="train both networks with N seeds each and average the accuracies (default: 1)",
    )
    add(
        "--own-masks",
        action="store_true",
        help="train the naive network on masks of its own, from torch.bernoulli, instead of the "
        "masks that ours draws: slower, and the accuracies then differ by chance",
    )
    add("--threads", type=positive_int, metavar="N", help="default: torch.get_num_threads()")
    add(
        "--out",
        default="fused-dropout-demo.png",
        metavar="FILE",
        help="where the picture goes (default: fused-dropout-demo.png in the current folder)",
    )
    add("--json", type=Path, metavar="FILE", help="write all figures to FILE")


def run(args: argparse.Namespace) -> int:
    """Train, print the table, save the picture and, where --json is given, the figures.

    Raises ArgumentError, before the training, for arguments or data that do not fit.
    """
    from fused_dropout._tools.demo import plots  # needs matplotlib, `--help` does not

    out = Path(args.out)
    if out.suffix.lower() != ".png":
        raise ArgumentError(f"--out must end in .png, got {out}")
    data = _load(args.data)
    settings = _settings(args)
    trained = subset(data, _subset_size(args, data), settings.seed)
    _check_memory(data, settings)
    console = report_console()
    with (
        output_file("--out", out) as write_picture,
        output_file("--json", args.json) as write_json,
    ):
        with thread_count(args.threads):
            results = _measure_and_train(console, args, settings, data, trained)
            document = json_document([results.figures()])
        _print_results(console, results)
        write_picture(plots.picture(results, document))
        write_json(document)
    console.print(f"Picture: {out}", soft_wrap=True, highlight=False)
    if args.json is not None:
        console.print(f"Figures: {args.json}", soft_wrap=True, highlight=False)
    return 0


def _load(folder: str | None) -> Dataset:
    try:
        return training.standardised(load_digits() if folder is None else load_idx(folder))
    except DataError as error:
        raise ArgumentError(str(error)) from error


def _measure_and_train(
    console: Console, args: argparse.Namespace, settings: Settings, data: Dataset, trained: Dataset
) -> Results:
    _print_plan(console, settings, data)
    naive = _measure(NaiveDropConnectLinear, trained, settings)
    fused = _measure(DropConnectLinear, trained, settings)
    _print_subset(console, settings, data, trained, naive.step)

    naive_layer = NaiveDropConnectLinear if args.own_masks else SameMaskNaiveLinear
    for index in range(args.seeds):
        seeded = replace(settings, seed=settings.seed + index, mask_seed=settings.seed + index)
        part = subset(data, len(trained.train_x), seeded.seed)
        suffix = f", seed {seeded.seed}" if args.seeds > 1 else ""
        for label, layer, side in (
            ("naive", naive_layer, naive),
            ("fused", DropConnectLinear, fused),
        ):
            history = train_with_progress(console, label + suffix, layer, part, seeded)
            side.histories.append(history)

    more_draws = []
    for index in range(_MORE_MASK_DRAWS):
        drawn = replace(settings, mask_seed=settings.seed + args.seeds + index)
        label = f"fused, masks {index + 2}/{_MORE_MASK_DRAWS + 1}"
        history = train_with_progress(console, label, DropConnectLinear, trained, drawn)
        more_draws.append(history.accuracies[-1])
    fused_all = None
    if trained is not data:
        label = "fused, all examples"
        fused_all = train_with_progress(console, label, DropConnectLinear, data, settings)
    return Results(settings, data, trained, args.own_masks, naive, fused, more_draws, fused_all)


def _measure(layer: training.LayerType, data: Dataset, settings: Settings) -> Side:
    step = training.training_step(layer, data, settings)
    layer_step = training.layer_step(layer, data, settings)
    return Side(
        layer_step=training.seconds_per_call(layer_step, layer),
        step=training.seconds_per_call(step, layer),
        peak_bytes=peak_extra_bytes(step),
    )


def _print_plan(console: Console, settings: Settings, data: Dataset) -> None:
    hidden = settings.hidden
    console.print(
        f"{data.name}: {len(data.train_x)} training and {len(data.test_x)} test examples. Network "
        f"{data.features}-{hidden}-{hidden}-{training.CLASSES}, DropConnect p = {settings.p:g} in "
        f"the first two layers, batch {settings.batch_size}, {torch.get_num_threads()} threads.",
        highlight=False,
    )
    console.print("Timing both layers...", highlight=False)


def _print_subset(
    console: Console, settings: Settings, data: Dataset, trained: Dataset, naive_step: float
) -> None:
    if trained is data:
        return
    needed = _duration(naive_step * settings.steps(data))
    console.print(
        f"[bold]The naive layer takes {_duration(naive_step)} a step here, {needed} for "
        f"{settings.epochs} epochs of all {len(data.train_x)} examples. So both networks are "
        f"trained on the same {len(trained.train_x)} examples (--subset), and ours then on all of "
        "them as well.[/bold]",
        highlight=False,
    )


def _print_results(console: Console, results: Results) -> None:
    naive, fused, settings = results.naive, results.fused, results.settings
    table = Table(title=f"DropConnect on {results.data.name}: naive PyTorch and fused_dropout")
    table.add_column("")
    for column in ("naive", "fused", "fused vs naive"):
        table.add_column(column, justify="right")

    def add_time(label: str, factor: int, seconds: Callable[[Side], float]) -> None:
        slow, fast = seconds(naive) * factor, seconds(fused) * factor
        table.add_row(label, _duration(slow), _duration(fast), f"{_ratio(slow / fast)} faster")

    add_time("DropConnect layer-step", 1, lambda side: side.layer_step)
    add_time("training step", 1, lambda side: side.step)
    for data in [results.trained] + ([results.data] if results.fused_all else []):
        steps = settings.steps_per_epoch(data)
        label = f"epoch of {len(data.train_x)} ({steps} steps)"
        add_time(label, steps, lambda side: side.step)
    table.add_row("peak extra memory in a step", *_memory_cells(naive, fused))
    difference = fused.accuracy - naive.accuracy
    table.add_row(
        f"accuracy, {settings.epochs} epochs of {len(results.trained.train_x)}",
        f"{naive.accuracy:.2f} %",
        f"{fused.accuracy:.2f} %",
        f"{difference:+.2f} points",
    )
    if results.fused_all:
        label = f"accuracy, {settings.epochs} epochs of {len(results.data.train_x)}"
        naive_time = _duration(naive.step * settings.steps(results.data))
        accuracy = f"{results.fused_all.accuracies[-1]:.2f} %"
        table.add_row(label, f"not run ({naive_time})", accuracy, "")
    console.print(table)
    for line in _notes(results):
        console.print(line, highlight=False)


def _memory_cells(naive: Side, fused: Side) -> tuple[str, str, str]:
    if naive.peak_bytes is None or fused.peak_bytes is None:
        return "not measurable here", "", ""
    noise = 2**20
    ratio = max(naive.peak_bytes, noise) / max(fused.peak_bytes, noise)
    return _size(naive.peak_bytes), _size(fused.peak_bytes), f"{_ratio(ratio)} less"


def _notes(results: Results) -> Iterator[str]:
    seeds = len(results.naive.histories)
    runs = "one seed" if seeds == 1 else f"the mean of {seeds} seeds"
    yield (
        "Layer-step: forward and backward of the two DropConnect layers. Naive times are of the "
        "layer as people write it, with masks from torch.bernoulli; an epoch's time is its steps "
        "times the time of one. Memory is the peak over one training step."
    )
    common = (
        f"Accuracy on the test set: {runs}; both networks with the same initial weights, batches "
        "and schedule"
    )
    if results.own_masks:
        yield f"{common}, the naive one with masks of its own from torch.bernoulli (--own-masks)."
    else:
        yield (
            f"{common}, and the same masks: the naive one computed as ever, but on the masks that "
            "fused_dropout.mask gives for ours. So only rounding differs: at most "
            f"{results.largest_loss_difference:.1e} in the training loss of a step. --own-masks "
            "compares with masks from torch.bernoulli."
        )
    mean, deviation = statistics.mean(results.more_draws), statistics.stdev(results.more_draws)
    yield (
        f"The draw of the masks alone moves our accuracy by {deviation:.2f} points (standard "
        f"deviation of {len(results.more_draws)} further runs with other masks, mean {mean:.2f} %)."
    )


def _settings(args: argparse.Namespace) -> Settings:
    defaults = _DIGITS_DEFAULTS if args.data is None else _IDX_DEFAULTS
    return Settings(
        hidden=args.hidden or defaults["hidden"],
        p=args.p,
        batch_size=args.batch_size,
        epochs=args.epochs or defaults["epochs"],
        lr=args.lr,
        seed=args.seed,
        mask_seed=args.seed,
    )


def _subset_size(args: argparse.Namespace, data: Dataset) -> int:
    examples = len(data.train_x)
    if args.subset is not None and args.subset > examples:
        raise ArgumentError(f"--subset must be at most {examples}, got {args.subset}")
    default = examples if args.data is None else min(_IDX_SUBSET, examples)
    size: int = args.subset or default
    if args.batch_size > size:
        raise ArgumentError(
            f"--batch-size must be at most the {size} examples trained on, got {args.batch_size}"
        )
    return size


def _check_memory(data: Dataset, settings: Settings) -> None:
    connections = settings.hidden * (data.features + settings.hidden)
    naive = _NAIVE_BYTES_PER_CONNECTION * settings.batch_size if settings.p > 0 else 0
    needed = (_NETWORK_BYTES_PER_WEIGHT + naive) * connections
    available = available_bytes()
    if available is not None and needed > available:
        raise ArgumentError(
            f"the naive network needs about {_size(needed)} of memory at "
            f"--hidden {settings.hidden} and --batch-size {settings.batch_size}, "
            f"{_size(available)} are free; lower either"
        )


def _duration(seconds: float) -> str:
    """Three significant digits in the unit that reads best."""
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{1000 * seconds:.3g} ms"


def _ratio(value: float) -> str:
    return f"{value:.0f}x" if value >= 10 else f"{value:.1f}x"


def _size(count: int) -> str:
    mebibytes = count / 2**20
    return f"{mebibytes / 1024:.1f} GiB" if mebibytes >= 1000 else f"{mebibytes:.0f} MiB"


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number > 0, got {text!r}")
    return value


def _seed(text: str) -> int:
    if not text.strip().isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be an integer in [0, 2^32 - 1], got {text!r}")
    return int(text)
