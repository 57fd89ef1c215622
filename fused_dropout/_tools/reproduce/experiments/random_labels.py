"""Networks learn random labels by heart; what dropout and DropConnect change about that.

Zhang et al. 2017, "Understanding deep learning requires rethinking generalization", which Dive into
Deep Learning, section 4.6, opens with: every label is replaced by a random one. Nothing connects
images and labels any more, yet a network trained by SGD comes to label every training image as it
was told, while no classifier can do better than chance on other images. The paper concludes that
explicit regularisation is not by itself sufficient against this.

Arpit et al. 2017, "A Closer Look at Memorization in Deep Networks", looked closer: with dropout the
training accuracy on random labels can be degraded without harm to what the network learns from true
ones. Here both kinds of labels are learned for the same number of epochs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fused_dropout._tools.datasets import CLASSES
from fused_dropout._tools.reproduce.checks import AtLeast, AtMost, Ordering
from fused_dropout._tools.reproduce.experiment import (
    Budget,
    Experiment,
    Job,
    Measured,
    Metric,
    Setting,
)
from fused_dropout._tools.reproduce.networks import Noise, mlp
from fused_dropout._tools.reproduce.plots import draw_curves, draw_seeds
from fused_dropout._tools.reproduce.training import Recipe, fit, tested
from fused_dropout.nn import DropConnectLinear, Dropout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fused_dropout._tools.reproduce.results import Results

_HIDDEN = (512, 512)

SETTINGS = (
    Setting("random_none", "random labels, no dropout", {"random": True}),
    Setting("random_dropout", "random labels, dropout .5", {"random": True, "dropout": 0.5}),
    Setting(
        "random_dropconnect",
        "random labels, DropConnect .5",
        {"random": True, "dropconnect": 0.5},
    ),
    Setting("true_none", "true labels, no dropout", {"random": False}),
    Setting("true_dropout", "true labels, dropout .5", {"random": False, "dropout": 0.5}),
    Setting(
        "true_dropconnect", "true labels, DropConnect .5", {"random": False, "dropconnect": 0.5}
    ),
)


def run(job: Job) -> Measured:
    """Train on true or random labels; after each epoch the accuracy on what was learned from."""
    data, options = job.data, job.options
    assert data is not None
    train, test = data.train, data.test
    if options["random"]:
        labels = torch.Generator().manual_seed(job.seed)
        train, test = (_with_random_labels(inputs, labels) for inputs, _ in (train, test))

    noises: tuple[Noise, ...] = ()
    linear: Callable[[int, int], nn.Module] = nn.Linear
    if "dropout" in options:
        noises = (partial(Dropout, options["dropout"]),) * len(_HIDDEN)
    if "dropconnect" in options:
        linear = partial(DropConnectLinear, p=options["dropconnect"])
    network = mlp(data.features, _HIDDEN, noises, linear=linear)

    accuracies: list[float] = []

    def after_epoch(epoch: int) -> None:
        accuracies.append(tested(network, *train)[0])

    recipe = Recipe(job.budget.epochs, batch_size=50, lr=0.05, momentum=0.9, decays=True)
    fit(network, train, recipe, job.seed, job.report, after_epoch=after_epoch)
    return Measured(
        {"train_accuracy": accuracies[-1], "test_accuracy": tested(network, *test)[0]},
        {"train_accuracy": accuracies},
    )


def _with_random_labels(inputs: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return inputs, torch.randint(CLASSES, (len(inputs),), generator=generator)


def draw(figure: Figure, results: Results) -> None:
    """How fast each kind of labels is learned by heart, and what the true ones taught."""
    random, true, bars = figure.subplots(1, 3, width_ratios=(1, 1, 0.8))
    for axes, kind in ((random, "random"), (true, "true")):
        draw_curves(axes, results, _short_labels(kind), "train_accuracy")
        axes.set_title(f"training accuracy, {kind} labels")
        axes.set_xlabel("epoch")
        axes.set_ylim(0.0, 1.03)
    draw_seeds(bars, results, _short_labels("true"), "test_accuracy")
    bars.set_title("test accuracy, true labels")


def _short_labels(kind: str) -> dict[str, str]:
    """Labels by name of the settings with random or with true labels, without these words."""
    own = [setting for setting in SETTINGS if setting.name.startswith(kind)]
    return {setting.name: setting.label.partition(", ")[2] for setting in own}


EXPERIMENT = Experiment(
    name="random-labels",
    title="Learning random labels by heart",
    question="Does a network memorise labels that mean nothing, and do dropout and DropConnect "
    "keep it from doing so?",
    source="Zhang et al., Understanding deep learning requires rethinking generalization, ICLR "
    "2017; Arpit et al., A Closer Look at Memorization in Deep Networks, ICML 2017",
    data=("mnist",),
    settings=SETTINGS,
    metrics=(
        Metric("train_accuracy", "training accuracy"),
        Metric("test_accuracy", "test accuracy"),
    ),
    checks=(
        AtLeast(
            "without dropout random labels are learned by heart: training accuracy at least .99",
            "train_accuracy",
            "random_none",
            0.99,
        ),
        AtMost(
            "what was learned from random labels is worth no more than chance, .10, on other "
            "images: test accuracy at most .11",
            "test_accuracy",
            "random_none",
            0.11,
        ),
        Ordering(
            "in the same time a network with dropout memorises fewer random labels",
            "train_accuracy",
            better="random_none",
            worse="random_dropout",
            higher_is_better=True,
        ),
    ),
    run=run,
    draw=draw,
    quick=Budget(seeds=2, epochs=2, examples=200, time="6 s"),
    default=Budget(seeds=5, epochs=50, examples=1000, time="4 min"),
    full=Budget(seeds=5, epochs=300, examples=50000, time="20 h"),
    smaller="a network of two layers learns 1000 digits; the papers train on the 50000 images of "
    "CIFAR-10, with convolutional networks too.",
    figure_size=(12.5, 4.0),
)
