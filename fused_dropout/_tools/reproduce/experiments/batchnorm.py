"""Dropout before BatchNorm: the variance shift of Li et al. 2019.

In training, dropout adds variance to what follows it, and BatchNorm keeps a running mean of that
variance. In evaluation nothing is dropped: the variance is smaller, and BatchNorm divides by one
that is too large. Li et al. found that this shift grows from layer to layer and raises the error of
ResNets, that BatchNorm's statistics taken again without dropout undo a part of the harm, and that
none is done by dropout which follows all BatchNorms.

The shift can be computed. With y = sum of w_i x_i m_i / q, where m_i is 1 with probability
q = 1 - p and else 0, the variance of y is that of sum w_i x_i plus (p / q) sum of w_i^2 E[x_i^2].
"""

from __future__ import annotations

import copy
import statistics
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
from fused_dropout._tools.reproduce.plots import COLORS, decorate
from fused_dropout._tools.reproduce.training import Recipe, fit, outputs, tested
from fused_dropout.nn import Dropout

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fused_dropout._tools.reproduce.results import Results

_CHANNELS = 16
_RATES = (0.1, 0.3, 0.5)
_PROBE = 1000  # training images on which variances are measured

SETTINGS = (
    Setting("none", "no dropout", {"p": 0.0, "before": False}),
    *(
        Setting(f"{order}_{p}", f"p = {p}, {order} BatchNorm", {"p": p, "before": before})
        for order, before in (("before", True), ("after", False))
        for p in _RATES
    ),
)


def network(shape: tuple[int, int, int], p: float, before: bool) -> nn.Sequential:
    """Four convolutions with BatchNorm and ReLU; dropout before the last three, or at the end."""
    c = _CHANNELS
    layers: list[nn.Module] = [nn.Unflatten(1, shape)]
    layers += [nn.Conv2d(shape[0], c, 5, stride=2, padding=2), nn.BatchNorm2d(c), nn.ReLU()]
    for channels_in, channels, stride in ((c, c, 1), (c, 2 * c, 2), (2 * c, 2 * c, 1)):
        layers.append(Dropout(p if before else 0.0))
        layers.append(nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1))
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), Dropout(0.0 if before else p)]
    return nn.Sequential(*layers, nn.Linear(2 * c, CLASSES))


@torch.no_grad()
def variance_ratios(layers: nn.Sequential, x: Tensor) -> tuple[list[float], list[float]]:
    """Evaluation variance / training variance of the last three BatchNorms: found and predicted.

    The training variance is the running one of BatchNorm; the mean of all channels is returned.
    """
    layers.eval()
    found, predicted = [], []
    p, noise = 0.0, torch.zeros(())
    for layer in layers:
        if isinstance(layer, Dropout):
            p = layer.p
        elif isinstance(layer, nn.Conv2d):
            squares = F.conv2d(
                x.square(), layer.weight.square(), stride=layer.stride, padding=layer.padding
            )
            noise = p / (1.0 - p) * squares.mean((0, 2, 3))
        elif isinstance(layer, nn.BatchNorm2d):
            variance = x.var((0, 2, 3))
            assert layer.running_var is not None
            found.append((variance / layer.running_var).mean().item())
            predicted.append((variance / (variance + noise)).mean().item())
        x = layer(x)
    return found[1:], predicted[1:]


def with_new_statistics(layers: nn.Sequential, x: Tensor) -> nn.Sequential:
    """A copy whose BatchNorms have the statistics of these images without dropout."""
    layers = copy.deepcopy(layers).eval()  # dropout drops nothing,
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            layer.train()  # but BatchNorm takes statistics:
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches
    outputs(layers, x)
    return layers.eval()


def run(job: Job) -> Measured:
    """Train, compare the variances, test, and test with new statistics."""
    assert job.data is not None
    data = job.data.with_fewer_tests(job.budget.options["tests"])
    layers = network(data.shape, job.options["p"], job.options["before"])
    recipe = Recipe(job.budget.epochs, batch_size=50, lr=0.1, momentum=0.9, decays=True)
    fit(layers, data.train, recipe, job.seed, job.report)
    found, predicted = variance_ratios(layers, data.train_x[:_PROBE])
    renewed = with_new_statistics(layers, data.train_x)
    return Measured(
        {
            "ratio": found[0],
            "predicted": predicted[0],
            "shift": statistics.fmean(abs(ratio - 1.0) for ratio in found),
            "error": 100.0 * (1.0 - tested(layers, *data.test)[0]),
            "error_renewed": 100.0 * (1.0 - tested(renewed, *data.test)[0]),
        }
    )


def draw(figure: Figure, results: Results) -> None:
    """The ratio and the errors against the rate, for both orders."""
    ratio, error = figure.subplots(1, 2)
    for place, order in enumerate(("before", "after")):
        _draw_line(ratio, results, order, "ratio", f"dropout {order}: measured", place)
        _draw_line(error, results, order, "error", f"dropout {order} BatchNorm", place)
    _draw_line(ratio, results, "before", "predicted", "dropout before: predicted", 7, "--")
    _draw_line(
        error, results, "before", "error_renewed", "before, statistics without dropout", 7, "--"
    )
    ratio.set_title("variance shift at the second BatchNorm")
    ratio.set_ylabel("evaluation / training variance")
    error.set_title("test error")
    error.set_ylabel("test error, %")
    for axes in (ratio, error):
        axes.set_xlabel("drop rate p")
        axes.set_xticks((0.0, *_RATES))
        axes.legend(frameon=False)
        decorate(axes)


def _draw_line(
    axes: Axes, results: Results, order: str, metric: str, label: str, color: int, style: str = "-"
) -> None:
    """A metric against the rate: the mean as a line, each seed as a dot."""
    names = ("none", *(f"{order}_{p}" for p in _RATES))
    values = np.array([results.values(name, metric) for name in names])
    rates = (0.0, *_RATES)
    axes.plot(rates, values.mean(1), style, color=COLORS[color], label=label)
    if style == "-":
        axes.plot(rates, values, "o", color=COLORS[color], markersize=4, alpha=0.7)


EXPERIMENT = Experiment(
    name="batchnorm",
    title="Dropout and BatchNorm: the variance shift",
    question=(
        "How far apart are the variances that BatchNorm sees in training and in evaluation, with "
        "dropout before it and after it, and what does that do to the error?"
    ),
    source="Li, Chen, Hu and Yang, Understanding the Disharmony between Dropout and Batch "
    "Normalization by Variance Shift, 2019",
    data=("fashion-mnist", "mnist"),
    settings=SETTINGS,
    metrics=(
        Metric("ratio", "evaluation / training variance, 2nd BatchNorm"),
        Metric("predicted", "predicted"),
        Metric("shift", "|ratio - 1|, mean of BatchNorms"),
        Metric("error", "test error, %", 2),
        Metric("error_renewed", "with statistics without dropout, %", 2),
    ),
    checks=(
        *(
            Ordering(
                f"p = {p}: the variance shifts less with dropout after all BatchNorms",
                "shift",
                f"after_{p}",
                f"before_{p}",
            )
            for p in _RATES
        ),
        Ordering(
            "p = 0.5: the error is lower with dropout after all BatchNorms",
            "error",
            "after_0.5",
            "before_0.5",
        ),
    ),
    run=run,
    draw=draw,
    quick=Budget(seeds=2, epochs=1, examples=300, time="8 s", options={"tests": 500}),
    default=Budget(seeds=5, epochs=15, examples=1000, time="6 min", options={"tests": 10_000}),
    full=Budget(seeds=5, epochs=100, time="60 h", options={"tests": 10_000}),
    smaller=(
        "the source trained ResNets, ResNeXts, DenseNets and wide ResNets on all of CIFAR-10 and "
        "CIFAR-100; here four convolutional layers learn 1000 images of Fashion-MNIST."
    ),
)
