"""What the hidden units of an autoencoder look for, with and without dropout.

Srivastava et al. 2014, section 7.1 and Figure 7: two autoencoders with one hidden layer of 256
rectified linear units learn to give back the digits of MNIST. One drops half of its hidden units in
training. A picture of a unit shows its weights, one for each pixel of the digit. The paper found
that no unit of the plain autoencoder seems to detect a meaningful feature on its own, while those
of the other one "seem to detect edges, strokes and spots in different parts of the image".

Two numbers say what the eye sees. A spot or a stroke lies in one part of the image: most of a
unit's squared weights are in one small window. And it is smooth: neighbouring pixels have similar
weights, while those of a picture of noise do not.

The paper also says that both autoencoders give back test images about equally well. Trained for the
same time, as here, the one with dropout is clearly worse at it.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
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
from fused_dropout._tools.reproduce.networks import autoencoder, initialise_normal
from fused_dropout._tools.reproduce.plots import COLORS, decorate, draw_images
from fused_dropout._tools.reproduce.training import (
    Recipe,
    fit_autoencoder,
    half_squared_distance,
    outputs,
)
from fused_dropout.nn import Dropout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fused_dropout._tools.reproduce.results import Results

_HIDDEN = 256
_SHOWN = 100  # units in the picture
_WINDOW = 9 / 28  # side of the window, as a share of the image's side: 9 pixels of 28
_BINS = np.linspace(0.0, 1.0, 26)  # of the histogram

SETTINGS = (
    Setting("none", "no dropout", {"p": 0.0}),
    Setting("dropout", "dropout .5", {"p": 0.5}),
)


def run(job: Job) -> Measured:
    """Train an autoencoder; measure the weights into its hidden units."""
    data = job.data
    assert data is not None
    _, height, width = data.shape
    noise = partial(Dropout, job.options["p"], convention="paper")
    network = autoencoder(data.features, _HIDDEN, noise)
    # Small weights: those of pixels that are never black stay where they start.
    initialise_normal(network, 0.01)
    recipe = Recipe(job.budget.epochs, batch_size=100, lr=0.01, momentum=0.9)
    fit_autoencoder(network, data.train_x, recipe, job.seed, half_squared_distance, job.report)

    error = (outputs(network, data.test_x) - data.test_x).square().sum(1).mean().item()
    alive = outputs(network[:2], data.test_x).amax(0) > 0
    weights = next(network.parameters()).detach()[alive].view(-1, height, width)
    shares = _share_in_best_window(weights, round(_WINDOW * height))
    histogram, _ = np.histogram(shares, _BINS)
    return Measured(
        {
            "share": shares.mean().item(),
            "smoothness": _smoothness(weights).mean().item(),
            "error": error,
            "dead": 1.0 - alive.float().mean().item(),
        },
        {"histogram": list(histogram / len(shares))},
        {"units": _greys(weights[:_SHOWN])},
    )


def _share_in_best_window(weights: Tensor, side: int) -> Tensor:
    """Of each unit: the share of its squared weights in the square window that holds the most."""
    squares = weights.square()
    windows = F.avg_pool2d(squares[:, None], side, stride=1) * side**2
    return windows.flatten(1).amax(1) / squares.sum((1, 2))


def _smoothness(weights: Tensor) -> Tensor:
    """Of each unit: the correlation of the weights of neighbouring pixels."""
    down = (weights[:, 1:] * weights[:, :-1]).sum((1, 2))
    right = (weights[:, :, 1:] * weights[:, :, :-1]).sum((1, 2))
    return 0.5 * (down + right) / weights.square().sum((1, 2))


def _greys(weights: Tensor) -> Tensor:
    """Each unit's weights as a picture: 0 is grey, its largest weight black or white."""
    largest = weights.abs().amax((1, 2), keepdim=True)
    return (127.5 * (1.0 + weights / largest)).round().to(torch.uint8)


def draw(figure: Figure, results: Results) -> None:
    """Units of both autoencoders, and how localised all of them are."""
    *grids, histogram = figure.subplots(1, 3, width_ratios=(1, 1, 0.55))
    for axes, setting in zip(grids, SETTINGS, strict=True):
        draw_images(axes, results.images(setting.name, "units"), columns=10)
        axes.set_title(f"{_SHOWN} hidden units, {setting.label}")
    for setting, color in zip(SETTINGS, COLORS, strict=False):
        shares = results.curves(setting.name, "histogram").mean(0)
        histogram.stairs(shares, _BINS, color=color, fill=True, alpha=0.25)
        histogram.stairs(shares, _BINS, color=color, linewidth=1.6, label=setting.label)
    histogram.set_title("how localised the units are")
    histogram.set_xlabel("squared weights in the best window")
    histogram.set_ylabel("share of the units")
    histogram.legend(frameon=False)
    decorate(histogram)


EXPERIMENT = Experiment(
    name="features",
    title="Features of an autoencoder with and without dropout",
    question="Do hidden units become detectors of spots and strokes when dropout separates them?",
    source="Srivastava et al., Dropout, JMLR 2014, section 7.1 and Figure 7",
    data=("mnist",),
    settings=SETTINGS,
    metrics=(
        Metric("share", "share of squared weights in the best 9x9 window"),
        Metric("smoothness", "correlation of neighbouring weights"),
        Metric("error", "squared error of a test image", 2),
        Metric("dead", "share of units that are never active"),
    ),
    checks=(
        Ordering(
            "with dropout the features lie in specific parts of the image",
            "share",
            better="dropout",
            worse="none",
            higher_is_better=True,
        ),
        Ordering(
            "with dropout the features are strokes and spots, smoother than noise",
            "smoothness",
            better="dropout",
            worse="none",
            higher_is_better=True,
        ),
    ),
    chosen=(
        "the optimiser was chosen among several with the pictures in view, so the size of the "
        "effect depends on it."
    ),
    run=run,
    draw=draw,
    quick=Budget(seeds=2, epochs=2, examples=1000, time="5 s"),
    default=Budget(seeds=3, epochs=20, examples=20000, time="2 min"),
    full=Budget(seeds=5, epochs=200, time="2 h"),
    smaller=(
        "the autoencoders see 20000 of the 60000 digits, 20 times each; the paper does not say how "
        "long its own were trained."
    ),
    figure_size=(13.0, 5.4),
)
