"""DropConnect behind a convolutional network (Wan et al. 2013, Tables 3 and 4).

The source's model: a feature extractor of convolutions, a fully connected layer with Dropout,
DropConnect or neither, and a softmax layer. Table 3 trains it on MNIST as it is, with images
cropped at random, and with images rotated and scaled as well. Table 4 trains another one on
CIFAR-10: the experiment dropconnect-cifar10, for those who have the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fused_dropout._tools.reproduce.checks import Ordering
from fused_dropout._tools.reproduce.experiment import (
    Budget,
    Experiment,
    Job,
    Measured,
    Setting,
)
from fused_dropout._tools.reproduce.experiments.dropconnect import CLAIMS, KINDS, METRICS, vote
from fused_dropout._tools.reproduce.plots import draw_curves, draw_seeds, labels_of
from fused_dropout._tools.reproduce.training import Recipe, fit, outputs
from fused_dropout.nn import DropConnectLinear, Dropout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fused_dropout._tools.reproduce.results import Results

_CHANGES = {"": "", "crop": ", crop", "turn": ", crop, rotation, scaling"}
_SHIFT = 2  # pixels: a 24x24 crop of a 28x28 image is a shift by up to 2
_ANGLE = 15.0  # degrees
_SCALE = 0.15
_TESTED_EACH_EPOCH = 1000  # test images, for the curves; the last error is of all

SETTINGS = tuple(
    Setting(f"{kind}_{change}" if change else kind, label + text, {"kind": kind, "change": change})
    for change, text in _CHANGES.items()
    for kind, label in KINDS.items()
)
CIFAR_SETTINGS = SETTINGS[: len(KINDS)]


def network(shape: tuple[int, int, int], kind: str, units: int) -> nn.Sequential:
    """Two convolutions with pooling, the layer in question, and a linear layer to the classes."""
    channels, height, width = shape
    features = 16 * (height // 4) * (width // 4)
    linear = partial(DropConnectLinear, p=0.5) if kind == "dropconnect" else nn.Linear
    return nn.Sequential(
        nn.Unflatten(1, shape),
        nn.Conv2d(channels, 8, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        linear(features, units),
        nn.ReLU(),
        Dropout(0.5 if kind == "dropout" else 0.0),
        nn.Linear(units, 10),
    )


def changed(
    x: Tensor, generator: torch.Generator, shape: tuple[int, int, int], turns: bool
) -> Tensor:
    """Images shifted by up to two pixels; with `turns` rotated and scaled too."""

    def uniform(bound: float) -> Tensor:
        return bound * (2.0 * torch.rand(len(x), generator=generator) - 1.0)

    angle = uniform(math.radians(_ANGLE)) if turns else torch.zeros(len(x))
    scale = 1.0 + uniform(_SCALE) if turns else torch.ones(len(x))
    cos, sin = scale * angle.cos(), scale * angle.sin()
    # affine_grid measures in halves of the image.
    across, down = (uniform(2.0 * _SHIFT / size) for size in (shape[2], shape[1]))
    moves = torch.stack([cos, -sin, across, sin, cos, down], 1).view(-1, 2, 3)
    images = x.view(-1, *shape)
    grid = F.affine_grid(moves, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).flatten(1)


def run(job: Job) -> Measured:
    """Train one network; its probabilities on the test set are kept for the vote."""
    data, options = job.data, job.options
    assert data is not None
    data = data.part(job.budget.options["examples"], 0)
    data = data.with_fewer_tests(job.budget.options["tests"])
    mean = data.train_x.mean(0)
    layers = network(data.shape, options["kind"], job.budget.options["units"])
    recipe = Recipe(job.budget.epochs, lr=job.budget.options["lr"], momentum=0.9, decays=True)
    change = options["change"]
    test_x = data.test_x - mean
    curves = fit(
        layers,
        (data.train_x - mean, data.train_y),
        recipe,
        job.seed,
        job.report,
        test=(test_x[:_TESTED_EACH_EPOCH], data.test_y[:_TESTED_EACH_EPOCH]),
        augment=partial(changed, shape=data.shape, turns=change == "turn") if change else None,
    )
    errors = [100.0 * (1.0 - accuracy) for accuracy in curves.test_accuracy]
    probabilities = F.softmax(outputs(layers, test_x), 1)
    right = (probabilities.argmax(1) == data.test_y).double().mean().item()
    return Measured(
        {"error": 100.0 * (1.0 - right), "train_loss": curves.train_loss[-1]},
        {"error": errors, "train_loss": curves.train_loss},
        arrays={"probabilities": probabilities, "labels": data.test_y},
    )


def draw(figure: Figure, results: Results) -> None:
    """The error of every setting, and the curves without changes to the images."""
    bars, errors, losses = figure.subplots(1, 3, width_ratios=(1.3, 1, 1))
    shown = [setting for setting in SETTINGS if setting.name in results.settings]
    draw_seeds(bars, results, labels_of(shown), "error", colors=len(KINDS))
    bars.set_title("test error, %")
    for axes, curve, title in (
        (errors, "error", "test error, %"),
        (losses, "train_loss", "training loss"),
    ):
        draw_curves(axes, results, KINDS, curve)
        axes.set_yscale("log")
        axes.set_title(f"{title}, images as they are")
        axes.set_xlabel("epoch")


_PUBLISHED: Mapping[tuple[str, str], str] = {
    ("none", "error"): "0.77 ± 0.051",
    ("dropout", "error"): "0.59 ± 0.039",
    ("dropconnect", "error"): "0.63 ± 0.035",
    ("none_crop", "error"): "0.50 ± 0.098",
    ("dropout_crop", "error"): "0.39 ± 0.039",
    ("dropconnect_crop", "error"): "0.39 ± 0.047",
    ("none_turn", "error"): "0.30 ± 0.035",
    ("dropout_turn", "error"): "0.28 ± 0.016",
    ("dropconnect_turn", "error"): "0.28 ± 0.032",
    ("none", "voting_error"): "0.67",
    ("dropout", "voting_error"): "0.52",
    ("dropconnect", "voting_error"): "0.57",
    ("none_crop", "voting_error"): "0.38",
    ("dropout_crop", "voting_error"): "0.35",
    ("dropconnect_crop", "voting_error"): "0.32",
    ("none_turn", "voting_error"): "0.21",
    ("dropout_turn", "voting_error"): "0.27",
    ("dropconnect_turn", "voting_error"): "0.21",
}
_SMALL = {"examples": None, "tests": None, "units": 64, "lr": 0.05}

EXPERIMENT = Experiment(
    name="dropconnect-cnn",
    title="DropConnect behind convolutions, with crop, rotation and scaling",
    question="Does DropConnect help behind convolutions, and when images are changed at random?",
    source="Wan et al. 2013, Table 3",
    data=("mnist",),
    settings=SETTINGS,
    metrics=METRICS,
    published=_PUBLISHED,
    checks=(
        *CLAIMS,
        Ordering("Cropped images lower No-Drop's error", "error", "none_crop", "none"),
    ),
    run=run,
    draw=draw,
    combine=vote,
    quick=Budget(2, 1, time="10 s", options={**_SMALL, "examples": 256, "tests": 500}),
    default=Budget(
        5, 12, time="10 min", options={"examples": 3000, "tests": None, "units": 150, "lr": 0.05}
    ),
    full=Budget(
        5, 1000, time="700 h", options={"examples": None, "tests": None, "units": 150, "lr": 0.01}
    ),
    smaller=(
        "3000 training examples instead of 60,000, 12 epochs instead of 1000, 8 and 16 channels."
    ),
    figure_size=(15.0, 4.2),
)

CIFAR10 = Experiment(
    name="dropconnect-cifar10",
    title="DropConnect behind convolutions on CIFAR-10 or SVHN",
    question="Does DropConnect help behind convolutions on natural images?",
    source="Wan et al. 2013, Table 4",
    data=("cifar10", "svhn", "fashion-mnist"),
    settings=CIFAR_SETTINGS,
    metrics=METRICS,
    published={
        ("none", "error"): "23.5",
        ("dropout", "error"): "19.7",
        ("dropconnect", "error"): "18.7",
    },
    checks=CLAIMS,
    run=run,
    draw=draw,
    combine=vote,
    quick=Budget(2, 1, time="10 s", options={**_SMALL, "examples": 256, "tests": 500}),
    default=Budget(5, 15, time="6 min", options={**_SMALL, "examples": 3000}),
    full=Budget(5, 150, time="60 h", options={**_SMALL, "lr": 0.01}),
    smaller=(
        "3000 training images instead of 50,000, 15 epochs instead of 150, two convolutions "
        "instead of three."
    ),
    figure_size=(15.0, 4.2),
)
