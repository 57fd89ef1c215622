"""Which drop rates work: hidden units against inputs.

Srivastava et al. 2014 recommend to drop half of the hidden units and few of the inputs: their
"optimal probability of retention is usually closer to 1 than to 0.5". Section 7.3 and figure 9a
vary the rate of the hidden units: the test error is flat for drop rates of .2 to .6, and rises
towards 0, where the network overfits, and towards 1, where it cannot even learn the training set.
Rates here are those of dropping; the paper's p is that of keeping.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from fused_dropout._tools.reproduce.checks import Ordering
from fused_dropout._tools.reproduce.experiment import (
    Budget,
    Experiment,
    Job,
    Measured,
    Metric,
    Setting,
)
from fused_dropout._tools.reproduce.networks import mlp
from fused_dropout._tools.reproduce.plots import COLORS, decorate, draw_band
from fused_dropout._tools.reproduce.training import Recipe, fit, tested
from fused_dropout.nn import Dropout

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fused_dropout._tools.reproduce.results import Results

_HIDDEN_RATES = (0.0, 0.2, 0.5, 0.8, 0.95)
_INPUT_RATES = (0.0, 0.2, 0.5, 0.8)


def _name(hidden: float, inputs: float) -> str:
    return f"hidden_{hidden:g}_input_{inputs:g}"


SETTINGS = tuple(
    Setting(
        _name(hidden, inputs),
        f"hidden {hidden:g}, input {inputs:g}",
        {"hidden": hidden, "input": inputs},
    )
    for hidden in _HIDDEN_RATES
    for inputs in _INPUT_RATES
)


def run(job: Job) -> Measured:
    """Train with one pair of rates; errors without dropout, on test and training images."""
    data, rates = job.data, job.options
    assert data is not None
    hidden = job.budget.options["hidden"]
    network = mlp(
        data.features,
        hidden,
        (partial(Dropout, rates["hidden"]),) * len(hidden),
        input_noise=partial(Dropout, rates["input"]),
    )
    recipe = Recipe(job.budget.epochs, batch_size=100, lr=0.1, momentum=0.9, decays=True)
    fit(network, data.train, recipe, job.seed, job.report)
    return Measured(
        {
            "test_error": 100.0 * (1.0 - tested(network, *data.test)[0]),
            "train_error": 100.0 * (1.0 - tested(network, *data.train)[0]),
        }
    )


def draw(figure: Figure, results: Results) -> None:
    """The test error of every pair; both errors against the hidden rate, as the source's figure."""
    grid, line = figure.subplots(1, 2, width_ratios=(1, 1.15))
    _draw_grid(grid, results)
    rates = np.array(_HIDDEN_RATES)
    for place, (metric, label) in enumerate(
        (("test_error", "test error"), ("train_error", "training error"))
    ):
        by_rate = [results.values(_name(rate, 0.0), metric) for rate in _HIDDEN_RATES]
        draw_band(line, rates, np.array(by_rate).T, label, COLORS[place])
    line.set_xlabel("drop rate of the hidden units")
    line.set_ylabel("error, %")
    line.set_yscale("symlog", linthresh=1.0)
    line.set_yticks([0, 1, 5, 10, 50, 100], ["0", "1", "5", "10", "50", "100"])
    line.set_ylim(-0.1, 110.0)
    line.set_title("No input dropped (as the source's figure 9a)")
    line.legend(frameon=False)
    decorate(line)


def _draw_grid(axes: Axes, results: Results) -> None:
    """The mean test errors as a heat map with their numbers; colours by the logarithm."""
    errors = np.array(
        [
            [results.mean(_name(hidden, inputs), "test_error") for hidden in _HIDDEN_RATES]
            for inputs in _INPUT_RATES
        ]
    )
    axes.imshow(np.log(errors), cmap="cividis", origin="lower", aspect="auto")
    middle = np.log(errors).mean()
    for (row, column), error in np.ndenumerate(errors):
        color = "white" if np.log(error) < middle else "black"
        axes.text(column, row, f"{error:.1f}", ha="center", va="center", color=color)
    axes.set_xticks(range(len(_HIDDEN_RATES)), [f"{rate:g}" for rate in _HIDDEN_RATES])
    axes.set_yticks(range(len(_INPUT_RATES)), [f"{rate:g}" for rate in _INPUT_RATES])
    axes.set_xlabel("drop rate of the hidden units")
    axes.set_ylabel("drop rate of the inputs")
    axes.set_title("Test error, %, mean over seeds")


EXPERIMENT = Experiment(
    name="rates",
    title="Drop rates of hidden units and inputs",
    question="Is half of the hidden units and little of the input the right share to drop?",
    source="Srivastava et al., Dropout, JMLR 2014, sections 1 and 7.3, figure 9a",
    data=("mnist",),
    settings=SETTINGS,
    metrics=(
        Metric("test_error", "test error, %", 2),
        Metric("train_error", "training error, %", 2),
    ),
    checks=(
        Ordering(
            "hidden rate .5 errs less than 0",
            "test_error",
            better=_name(0.5, 0.0),
            worse=_name(0.0, 0.0),
        ),
        Ordering(
            "hidden rate .5 errs less than .95",
            "test_error",
            better=_name(0.5, 0.0),
            worse=_name(0.95, 0.0),
        ),
        Ordering(
            "hidden rate .95 underfits: it errs more than .5 on the training set too",
            "train_error",
            better=_name(0.5, 0.0),
            worse=_name(0.95, 0.0),
        ),
        Ordering(
            "input rate .2 errs less than .5, with hidden rate .5",
            "test_error",
            better=_name(0.5, 0.2),
            worse=_name(0.5, 0.5),
        ),
    ),
    run=run,
    draw=draw,
    quick=Budget(seeds=2, epochs=2, examples=500, time="8 s", options={"hidden": (64, 64)}),
    default=Budget(seeds=3, epochs=40, examples=2000, time="6 min", options={"hidden": (512, 512)}),
    full=Budget(seeds=3, epochs=1667, time="700 h", options={"hidden": (2048, 2048, 2048)}),
    smaller="784-512-512-10 learns 2000 images in 800 updates; the source's 784-2048-2048-2048-10 "
    "learns all 60000 in up to a million, and drops no inputs.",
)
