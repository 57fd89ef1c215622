"""What dropout does to the activations of hidden units: sparser, and no unit is indispensable.

Three questions of three sources, asked of the same networks:

Srivastava et al. 2014, section 7.2 and Figure 8: as a side effect of dropout the hidden activations
become sparse. The paper looks at the autoencoders of its Figure 7 (see the experiment features):
their mean activation on test images is close to 2.0 without dropout and around 0.7 with it.

Dive into Deep Learning, section 4.6, exercise 3: how does the variance of the activations of each
hidden layer evolve in training, with and without dropout?

Chapter 209 on dropout, section 4: units that do not rely on each other make a network less
sensitive to the removal of any single one. Each hidden unit is removed in turn; how much does the
loss on test images change without it? For a classifier the change may be a gain, so its size is
what counts.

The paper does not print the loss of its autoencoders, and the size of the activations depends on
it. Here it is the cross entropy of logistic outputs, as usual for images in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fused_dropout._tools.reproduce.checks import Ordering
from fused_dropout._tools.reproduce.experiment import (
    Budget,
    Experiment,
    Job,
    Measured,
    Metric,
    Setting,
)
from fused_dropout._tools.reproduce.networks import autoencoder, initialise_normal, mlp
from fused_dropout._tools.reproduce.plots import COLORS, decorate, draw_seeds, labels_of
from fused_dropout._tools.reproduce.training import (
    Recipe,
    fit,
    fit_autoencoder,
    logistic_cross_entropy,
)
from fused_dropout.nn import DropConnectLinear, Dropout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fused_dropout._tools.reproduce.results import Results

_HIDDEN = 256  # units of each hidden layer
_BINS = np.linspace(0.0, 5.0, 26)  # of the histogram; what is larger is left out

SETTINGS = (
    Setting("autoencoder", "autoencoder, no dropout", {"autoencoder": True}),
    Setting(
        "autoencoder_dropout",
        "autoencoder, dropout .5",
        {"autoencoder": True, "noise": partial(Dropout, 0.5, convention="paper")},
    ),
    Setting("none", "classifier, no dropout"),
    Setting("dropout", "classifier, dropout .5", {"noise": partial(Dropout, 0.5)}),
    Setting(
        "dropconnect",
        "classifier, DropConnect .5",
        {"linear": partial(DropConnectLinear, p=0.5)},
    ),
)


def run(job: Job) -> Measured:
    """Train an autoencoder or a classifier, then measure its hidden units."""
    data, options = job.data, job.options
    assert data is not None
    probed = job.budget.options["probed"]  # test images to measure the activations on
    images, labels = data.test_x[:probed], data.test_y[:probed]
    variances: list[list[float]] = []  # by epoch and layer

    def measure_variances(epoch: int) -> None:
        variances.append([h.var(0).mean().item() for h in _activations(network, images).values()])

    noise = options.get("noise")
    if options.get("autoencoder"):
        network = autoencoder(data.features, _HIDDEN, noise)
        initialise_normal(network, 0.01)
        recipe = Recipe(job.budget.epochs, batch_size=100, lr=0.002, momentum=0.9)
        fit_autoencoder(
            network,
            data.train_x,
            recipe,
            job.seed,
            logistic_cross_entropy,
            job.report,
            measure_variances,
        )
        loss = partial(_divergence, images)
    else:
        linear = options.get("linear", nn.Linear)
        network = mlp(data.features, (_HIDDEN, _HIDDEN), (noise, noise), linear=linear)
        recipe = Recipe(job.budget.epochs, batch_size=100, lr=0.05, momentum=0.9)
        fit(network, data.train, recipe, job.seed, job.report, after_epoch=measure_variances)
        loss = partial(F.cross_entropy, target=labels)

    hidden = _activations(network, images)
    together = torch.cat(list(hidden.values()), dim=1)
    histogram, _ = np.histogram(together, _BINS)
    whole, increases = _removals(network, hidden, loss)
    curves = {
        f"variance_{layer}": list(points)
        for layer, points in enumerate(zip(*variances, strict=True), 1)
    }
    return Measured(
        {
            "mean": together.mean().item(),
            "zero": (together == 0).float().mean().item(),
            "increase": 100.0 * increases.mean().item() / whole,
            "change": 100.0 * increases.abs().mean().item() / whole,
            "largest": 100.0 * increases.max().item() / whole,
        },
        {"histogram": list(histogram / together.numel()), **curves},
    )


@torch.no_grad()
def _activations(network: nn.Sequential, inputs: Tensor) -> dict[int, Tensor]:
    """What each ReLU gives, by the number of layers up to and with it."""
    found = {}
    for place, layer in enumerate(network, 1):
        inputs = layer(inputs)
        if isinstance(layer, nn.ReLU):
            found[place] = inputs
    return found


@torch.no_grad()
def _removals(
    network: nn.Sequential, hidden: dict[int, Tensor], loss: Callable[[Tensor], Tensor]
) -> tuple[float, Tensor]:
    """The loss, and what the removal of each single hidden unit adds to it."""
    place, activations = next(iter(hidden.items()))
    whole = loss(network[place:](activations)).item()
    increases = []
    for place, activations in hidden.items():
        rest = network[place:]
        for unit in range(activations.shape[1]):
            without = activations.clone()
            without[:, unit] = 0.0
            increases.append(loss(rest(without)).item() - whole)
    return whole, torch.tensor(increases)


def _divergence(images: Tensor, decoded: Tensor) -> Tensor:
    """The cross entropy less the least that it can be: 0 where the images are given back."""
    least = (torch.special.entr(images) + torch.special.entr(1.0 - images)).sum(1).mean()
    return logistic_cross_entropy(decoded, images) - least


def draw(figure: Figure, results: Results) -> None:
    """Histograms of activations, their variance over time, and what a removed unit costs."""
    histogram, variance, removal = figure.subplots(1, 3, width_ratios=(1, 1, 0.9))
    for place, (name, label) in enumerate(labels_of(SETTINGS[:2]).items()):
        shares = results.curves(name, "histogram").mean(0)
        histogram.stairs(shares, _BINS, color=COLORS[place], fill=True, alpha=0.25)
        histogram.stairs(shares, _BINS, color=COLORS[place], linewidth=1.6, label=label)
    histogram.set_yscale("log")
    histogram.set_title("activations of hidden units")
    histogram.set_xlabel("activation")
    histogram.set_ylabel("share of all activations")
    histogram.legend(frameon=False, fontsize=9)
    decorate(histogram)
    for place, (name, label) in enumerate(labels_of(SETTINGS[2:]).items(), 2):
        for layer, style in ((1, "-"), (2, "--")):
            points = results.curves(name, f"variance_{layer}").mean(0)
            epochs = range(1, len(points) + 1)
            text = f"{label.partition(', ')[2]}, layer {layer}"
            variance.plot(epochs, points, style, color=COLORS[place], label=text)
    variance.set_title("variance of the activations (classifiers)")
    variance.set_xlabel("epoch")
    variance.set_ylim(0.0, 1.5 * variance.get_ylim()[1])  # leaves room for the legend
    variance.legend(frameon=False, fontsize=9)
    decorate(variance)
    draw_seeds(removal, results, labels_of(SETTINGS), "change")
    removal.set_title("sensitivity to removing a unit")
    removal.set_xlabel("change of the test loss, mean over units, %")


EXPERIMENT = Experiment(
    name="activations",
    title="Hidden activations with and without dropout",
    question="Are activations sparser with dropout, and is a network less sensitive to the removal "
    "of a hidden unit?",
    source="Srivastava et al., Dropout, JMLR 2014, section 7.2 and Figure 8; Dive into Deep "
    "Learning, section 4.6, exercise 3; chapter 209, section 4",
    data=("mnist",),
    settings=SETTINGS,
    metrics=(
        Metric("mean", "mean activation", 2),
        Metric("zero", "share of activations that are 0"),
        Metric("increase", "loss added by removing a unit, %"),
        Metric("change", "without its sign, %"),
        Metric("largest", "by removing the most important unit, %", 1),
    ),
    published={
        ("autoencoder", "mean"): "close to 2.0",
        ("autoencoder_dropout", "mean"): "around 0.7",
    },
    checks=(
        Ordering(
            "an autoencoder's mean activation is lower with dropout",
            "mean",
            better="autoencoder_dropout",
            worse="autoencoder",
        ),
        Ordering(
            "an autoencoder's activations are sparser with dropout",
            "zero",
            better="autoencoder_dropout",
            worse="autoencoder",
            higher_is_better=True,
        ),
        Ordering(
            "with dropout an autoencoder is less sensitive to the removal of a unit",
            "change",
            better="autoencoder_dropout",
            worse="autoencoder",
        ),
        Ordering(
            "with dropout a classifier is less sensitive to the removal of a unit",
            "change",
            better="dropout",
            worse="none",
        ),
    ),
    chosen=(
        "sensitivity is the change without its sign, since one seed; there were 3 seeds and "
        "the paper convention in the classifiers before, with the last claim at p = .0097."
    ),
    run=run,
    draw=draw,
    quick=Budget(seeds=2, epochs=2, examples=500, time="6 s", options={"probed": 100}),
    default=Budget(seeds=5, epochs=20, examples=10000, time="4 min", options={"probed": 1000}),
    full=Budget(seeds=5, epochs=200, time="4 h", options={"probed": 10000}),
    smaller="the networks see 10000 of the 60000 digits, 20 times each; the paper does not say how "
    "long its own were trained.",
    figure_size=(13.0, 4.2),
)
