"""With how many training images does dropout help most?

Srivastava et al. 2014, section 7.4 and figure 10: one large network is trained on 100 to 50000
images of MNIST, with dropout (half of the hidden units, a fifth of the inputs) and without. They
found no gain from dropout on the smallest sets, which the network learns by heart in spite of the
noise; then a gain that grows with the size up to a point, and declines, as with enough images
overfitting is no problem any more.

Every size gets the same number of updates, so small sets are seen many more times. The paper's
appendix B.1 counts updates too: a million for its results on MNIST.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from fused_dropout._tools.reproduce.checks import AtMost, Ordering
from fused_dropout._tools.reproduce.data import Images
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
    from matplotlib.figure import Figure

    from fused_dropout._tools.reproduce.results import Results

_SIZES = (100, 500, 1000, 5000, 10000, 50000)
_BATCH = 100
_INPUT_RATE, _HIDDEN_RATE = 0.2, 0.5

SETTINGS = tuple(Setting(str(size), f"{size} images", {"size": size}) for size in _SIZES)


def run(job: Job) -> Measured:
    """Train a network without and one with dropout on the same images, in the same order."""
    assert job.data is not None
    data = job.data.part(job.options["size"], job.seed)
    plain = _test_error(job, data, dropout=False)
    dropout = _test_error(job, data, dropout=True)
    return Measured({"plain": plain, "dropout": dropout, "gain": plain - dropout})


def _test_error(job: Job, data: Images, *, dropout: bool) -> float:
    """Of a network trained on these images, in percent."""
    hidden = job.budget.options["hidden"]
    torch.manual_seed(job.seed)  # the same first weights with and without dropout
    network = mlp(
        data.features,
        hidden,
        (partial(Dropout, _HIDDEN_RATE),) * len(hidden) if dropout else (),
        input_noise=partial(Dropout, _INPUT_RATE) if dropout else None,
    )
    updates_per_epoch = -(-len(data.train_x) // _BATCH)
    epochs = max(1, job.budget.options["updates"] // updates_per_epoch)
    recipe = Recipe(epochs, _BATCH, lr=0.05, momentum=0.9, decays=True)
    done = 0.5 * dropout
    fit(network, data.train, recipe, job.seed, lambda share: job.report(done + 0.5 * share))
    return 100.0 * (1.0 - tested(network, *data.test)[0])


def draw(figure: Figure, results: Results) -> None:
    """The test error of both networks against the size of the training set, and their distance."""
    errors, gains = figure.subplots(1, 2)
    for place, (metric, label) in enumerate(
        (("plain", "without dropout"), ("dropout", "with dropout"))
    ):
        draw_band(errors, np.array(_SIZES), _by_size(results, metric), label, COLORS[place])
    errors.set_yscale("log")
    errors.set_ylabel("test error, %")
    errors.set_yticks([2, 5, 10, 20], ["2", "5", "10", "20"])
    errors.minorticks_off()
    errors.set_title("Test error (band: least to most of the seeds)")
    errors.legend(frameon=False)
    draw_band(gains, np.array(_SIZES), _by_size(results, "gain"), "gain", COLORS[2])
    gains.axhline(0.0, color=COLORS[7], linewidth=0.8)
    gains.set_ylabel("percentage points")
    gains.set_title("Gain: error without dropout minus error with it")
    for axes in (errors, gains):
        axes.set_xscale("log")
        axes.set_xticks(_SIZES, ["100", "500", "1k", "5k", "10k", "50k"])
        axes.minorticks_off()
        axes.set_xlabel("training images")
        decorate(axes)


def _by_size(results: Results, metric: str) -> np.ndarray:
    """A metric as [seeds, sizes]."""
    return np.array([results.values(setting.name, metric) for setting in SETTINGS]).T


EXPERIMENT = Experiment(
    name="data-size",
    title="Dropout on small and large training sets",
    question="How does the gain from dropout depend on the number of training images?",
    source="Srivastava et al., Dropout, JMLR 2014, section 7.4 and figure 10",
    data=("mnist",),
    settings=SETTINGS,
    metrics=(
        Metric("plain", "test error without dropout, %", 2),
        Metric("dropout", "test error with dropout, %", 2),
        Metric("gain", "gain, points", 2),
    ),
    checks=(
        AtMost("dropout gives no improvement with 100 images", "gain", "100", 0.0),
        AtMost("dropout gives no improvement with 500 images", "gain", "500", 0.0),
        Ordering(
            "the gain grows from 100 to 1000 images",
            "gain",
            better="1000",
            worse="100",
            higher_is_better=True,
        ),
        Ordering(
            "the gain declines from 1000 to 50000 images",
            "gain",
            better="1000",
            worse="50000",
            higher_is_better=True,
        ),
    ),
    chosen=(
        "a first run with 800 updates and five seeds contradicted both claims about the "
        "smallest sets."
    ),
    run=run,
    draw=draw,
    quick=Budget(
        seeds=2, epochs=0, examples=2000, time="10 s", options={"hidden": (64, 64), "updates": 30}
    ),
    default=Budget(
        seeds=4, epochs=0, time="5 min", options={"hidden": (512, 512), "updates": 1000}
    ),
    full=Budget(
        seeds=3,
        epochs=0,
        time="130 h",
        options={"hidden": (1024, 1024, 2048), "updates": 1_000_000},
    ),
    smaller="784-512-512-10 and 1000 updates of 100 images; the source has 784-1024-1024-2048-10 "
    "and up to a million. So few are 2 epochs of 50000 images, which is short for dropout: its "
    "gain there is too low.",
)
