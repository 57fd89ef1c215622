"""Dropout in a convolutional network: of units, of channels, of blocks, of the head.

Tompson et al. 2015: neighbours in a feature map are correlated, so dropout of single units has
virtually no effect; SpatialDropout drops whole channels. Ghiasi et al. 2018: DropBlock drops
squares, and did better than both (1.6 points for ResNet-50 on ImageNet), best with a rate that
rises linearly from 0. Srivastava et al. 2014, on SVHN: dropout in the fully connected layers took
the error from 3.95 % to 3.02 %, dropout in the convolutional layers too took it to 2.55 %.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import nn

from fused_dropout._tools.datasets import CLASSES
from fused_dropout._tools.reproduce.checks import Ordering
from fused_dropout._tools.reproduce.experiment import (
    Budget,
    Experiment,
    Job,
    Measured,
    Metric,
    Setting,
)
from fused_dropout._tools.reproduce.plots import draw_errors_and_losses, labels_of
from fused_dropout._tools.reproduce.training import Recipe, final_figures, fit
from fused_dropout.nn import DropBlock2d, Dropout, Dropout2d
from fused_dropout.schedules import LinearSchedule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fused_dropout._tools.reproduce.results import Results

_CHANNELS = (16, 32)
_HIDDEN = 256
_MAP_RATE = 0.2  # of units, channels and blocks: the same share of a map is dropped
_HEAD_RATE = 0.5

MapNoise = Callable[[int], nn.Module]  # for maps with sides of this length


def units(side: int) -> nn.Module:
    """Drops each unit by itself."""
    return Dropout(_MAP_RATE)


def channels(side: int) -> nn.Module:
    """Drops whole channels."""
    return Dropout2d(_MAP_RATE)


def blocks(side: int) -> nn.Module:
    """Drops squares with half the side of the map, so many that the share is _MAP_RATE."""
    return DropBlock2d(_MAP_RATE, max(side // 2, 1), gamma="exact")


SETTINGS = (
    Setting("none", "no dropout"),
    Setting("head", "dropout in the head", {"head": True}),
    Setting("both", "dropout in the head and of units", {"head": True, "maps": units}),
    Setting("units", "dropout of units", {"maps": units}),
    Setting("channels", "dropout of channels (dropout2d)", {"maps": channels}),
    Setting("blocks", "DropBlock, constant rate", {"maps": blocks}),
    Setting("scheduled", "DropBlock, rising rate", {"maps": blocks, "scheduled": True}),
)


def network(shape: tuple[int, int, int], maps: MapNoise | None, head: bool) -> nn.Sequential:
    """Three convolutions with the maps' noise between them, and a hidden layer with the head's."""
    noise: MapNoise = maps or (lambda side: nn.Identity())
    first, second = _CHANNELS
    side = -(-shape[1] // 2)  # after a stride of 2
    return nn.Sequential(
        nn.Unflatten(1, shape),
        nn.Conv2d(shape[0], first, 5, stride=2, padding=2),
        nn.ReLU(),
        noise(side),
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        noise(side // 2),
        nn.Conv2d(second, second, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(second * (side // 2) ** 2, _HIDDEN),
        nn.ReLU(),
        Dropout(_HEAD_RATE if head else 0.0),
        nn.Linear(_HIDDEN, CLASSES),
    )


def run(job: Job) -> Measured:
    """Train and test."""
    options, epochs = job.options, job.budget.epochs
    assert job.data is not None
    data = job.data.with_fewer_tests(job.budget.options["tests"])
    layers = network(data.shape, options.get("maps"), options.get("head", False))
    schedule: LinearSchedule | None = None
    if options.get("scheduled"):
        dropping = [layer for layer in layers if isinstance(layer, DropBlock2d)]
        schedule = LinearSchedule(dropping, start=0.0, total_steps=max(epochs - 1, 1))

    def after_epoch(epoch: int) -> None:
        if schedule is not None:
            schedule.step()

    recipe = Recipe(epochs, batch_size=32, lr=0.05, momentum=0.9, decays=True)
    fit(layers, data.train, recipe, job.seed, job.report, after_epoch=after_epoch)
    return Measured(final_figures(layers, data))


def draw(figure: Figure, results: Results) -> None:
    """Test errors and losses."""
    error, loss = figure.subplots(1, 2)
    draw_errors_and_losses(error, loss, results, labels_of(SETTINGS))


EXPERIMENT = Experiment(
    name="conv",
    title="Dropout in a convolutional network",
    question=(
        "Which dropout helps a convolutional network: of units, of channels, of blocks (at a "
        "constant or a rising rate), or of the fully connected head?"
    ),
    source="Tompson et al. 2015; Ghiasi et al. 2018; Srivastava et al. 2014, section 6.1.2",
    data=("fashion-mnist", "mnist"),
    settings=SETTINGS,
    metrics=(
        Metric("train_loss", "training cross entropy, nats"),
        Metric("loss", "test cross entropy, nats"),
        Metric("error", "test error, %", 2),
    ),
    checks=(
        Ordering("dropout in the head helps (Srivastava)", "error", "head", "none"),
        Ordering("dropout of units too helps (Srivastava)", "error", "both", "head"),
        Ordering("channels are better than units (Tompson)", "error", "channels", "units"),
        Ordering("DropBlock is better than units (Ghiasi)", "error", "scheduled", "units"),
        Ordering("DropBlock is better than channels (Ghiasi)", "error", "scheduled", "channels"),
        Ordering("a rising rate is better (Ghiasi)", "error", "scheduled", "blocks"),
    ),
    chosen=(
        "network and rate were changed once, after a first version had left all six claims open."
    ),
    run=run,
    draw=draw,
    quick=Budget(seeds=2, epochs=1, examples=200, time="8 s", options={"tests": 500}),
    default=Budget(seeds=5, epochs=30, examples=500, time="8 min", options={"tests": 10_000}),
    full=Budget(seeds=5, epochs=100, time="50 h", options={"tests": 10_000}),
    smaller=(
        "Tompson et al. located joints of the body in photographs, Ghiasi et al. trained ResNet-50 "
        "on ImageNet, Srivastava et al. three convolutional and two dense layers on SVHN; here "
        "three convolutional layers and a dense one learn 500 images of Fashion-MNIST."
    ),
)
