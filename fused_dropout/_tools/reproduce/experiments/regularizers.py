"""Dropout and the regularisers that were there before it.

Srivastava et al. 2014, section 6.5 and table 9: one network learns MNIST with L2 (weight decay), L2
and L1 towards the end of training, L2 and KL sparsity, or max-norm, and with dropout and one of
these. Dropout with max-norm came out best, dropout with L2 second. Early stopping, label smoothing,
and dropout with L1 or KL sparsity are not in the table; they train on the same images here.

As in the paper, the strength of each regulariser was chosen on a validation set of training images.
Everything else is the same for all; the learning rate is the one that suits the network without a
regulariser.
"""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

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
from fused_dropout._tools.reproduce.plots import COLORS, decorate, draw_seeds, labels_of
from fused_dropout._tools.reproduce.training import Recipe, fit, tested
from fused_dropout.nn import Dropout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fused_dropout._tools.reproduce.results import Results

_INPUT_RATE, _HIDDEN_RATE = 0.2, 0.5  # of dropout
_TARGET = 0.1  # of KL sparsity: the mean activation wanted
_L1_FROM = 2 / 3  # of the training, until its end
_HELD_OUT = 0.2  # of the training images, for early stopping

SETTINGS = (
    Setting("none", "none"),
    Setting("l2", "L2", {"l2": 1e-3}),
    Setting("l2_l1", "L2, L1 at the end", {"l2": 1e-3, "l1": 1e-5}),
    Setting("l2_kl", "L2, KL sparsity", {"l2": 1e-3, "kl": 1e-2}),
    Setting("max_norm", "max-norm", {"max_norm": 1.5}),
    Setting("dropout_l2", "dropout, L2", {"dropout": True, "l2": 1e-3}),
    Setting("dropout_max_norm", "dropout, max-norm", {"dropout": True, "max_norm": 1.5}),
    Setting("dropout_l1", "dropout, L1 at the end", {"dropout": True, "l1": 1e-5}),
    Setting("dropout_kl", "dropout, KL sparsity", {"dropout": True, "kl": 1e-3}),
    Setting("early_stopping", "early stopping", {"early_stopping": True}),
    Setting("label_smoothing", "label smoothing .1", {"label_smoothing": 0.1}),
)

_PRINTED = {
    "l2": 1.62,
    "l2_l1": 1.60,
    "l2_kl": 1.55,
    "max_norm": 1.35,
    "dropout_l2": 1.25,
    "dropout_max_norm": 1.05,
}


class Penalty:
    """L1 of the weights and KL sparsity of the hidden units, to be added to the loss."""

    def __init__(self, network: nn.Module, l1: float, kl: float) -> None:
        self.l1, self.kl = l1, kl
        self.l1_is_on = False
        self._activations: dict[nn.Module, Tensor] = {}
        for module in network.modules():
            if kl and isinstance(module, nn.ReLU):
                module.register_forward_hook(self._keep)

    def __call__(self, network: nn.Module) -> Tensor:
        penalty = torch.zeros(())
        if self.l1 and self.l1_is_on:
            weights = [weight for weight in network.parameters() if weight.dim() > 1]
            penalty = penalty + self.l1 * torch.stack([w.abs().sum() for w in weights]).sum()
        for activations in self._activations.values():
            penalty = penalty + self.kl * _divergence(activations)
        return penalty

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self._activations[module] = output


def _divergence(activations: Tensor) -> Tensor:
    """KL(target || mean activation), summed over the units; a / (1 + a) brings a into [0, 1)."""
    mean = (activations / (1.0 + activations)).mean(0).clamp(1e-4, 1.0 - 1e-4)
    on, off = _TARGET * (_TARGET / mean).log(), (1.0 - _TARGET) * ((1 - _TARGET) / (1 - mean)).log()
    return (on + off).sum()


def run(job: Job) -> Measured:
    """Train with one regulariser; early stopping holds images of the training set out."""
    data, options = job.data, job.options
    assert data is not None
    hidden, epochs = job.budget.options["hidden"], job.budget.epochs
    network = mlp(
        data.features,
        hidden,
        (partial(Dropout, _HIDDEN_RATE),) * len(hidden) if "dropout" in options else (),
        input_noise=partial(Dropout, _INPUT_RATE) if "dropout" in options else None,
    )
    penalty = Penalty(network, options.get("l1", 0.0), options.get("kl", 0.0))
    recipe = Recipe(
        epochs,
        batch_size=100,
        lr=0.2,
        momentum=0.9,
        decays=True,
        weight_decay=options.get("l2", 0.0),
        max_norm=options.get("max_norm"),
        label_smoothing=options.get("label_smoothing", 0.0),
        penalty=penalty if "l1" in options or "kl" in options else None,
    )
    held_out = round(len(data.train_x) * _HELD_OUT) if "early_stopping" in options else 0
    validation = (data.train_x[:held_out], data.train_y[:held_out])
    train = (data.train_x[held_out:], data.train_y[held_out:])
    least, best = math.inf, network.state_dict()

    def after_epoch(epoch: int) -> None:
        nonlocal least, best
        penalty.l1_is_on = epoch >= _L1_FROM * epochs
        if held_out:
            _, loss = tested(network, *validation)
            if loss < least:
                least, best = loss, copy.deepcopy(network.state_dict())

    fit(network, train, recipe, job.seed, job.report, after_epoch=after_epoch)
    if held_out:
        network.load_state_dict(best)
    accuracy, loss = tested(network, *data.test)
    return Measured({"test_error": 100.0 * (1.0 - accuracy), "test_loss": loss})


def draw(figure: Figure, results: Results) -> None:
    """The test errors here, and those that the source printed."""
    ours, printed = figure.subplots(1, 2, width_ratios=(1.4, 1))
    draw_seeds(ours, results, labels_of(SETTINGS), "test_error")
    ours.set_title("Here: a dot for each seed, a stroke for the mean")
    labels = labels_of(SETTINGS, *_PRINTED)
    for place, name in enumerate(labels):
        color = COLORS[place + 1]  # as on the left, where "none" comes first
        printed.plot([_PRINTED[name]], [place], "|", color=color, markersize=22, markeredgewidth=3)
    printed.set_yticks(range(len(labels)), list(labels.values()))
    printed.set_ylim(len(labels) - 0.5, -0.5)
    printed.set_title("Table 9 of the source, 60000 images")
    decorate(printed)
    for axes in (ours, printed):
        axes.set_xlabel("test error, %")


EXPERIMENT = Experiment(
    name="regularizers",
    title="Dropout against other regularisers, and with them",
    question="Is dropout better than L2, L1, KL sparsity and max-norm, and does it help with them?",
    source="Srivastava et al., Dropout, JMLR 2014, section 6.5 and table 9",
    data=("mnist",),
    settings=SETTINGS,
    metrics=(Metric("test_error", "test error, %", 2), Metric("test_loss", "test loss, nats")),
    published={(name, "test_error"): f"{error:.2f}" for name, error in _PRINTED.items()},
    checks=(
        Ordering("dropout and L2 err less than L2", "test_error", "dropout_l2", "l2"),
        Ordering(
            "dropout and max-norm err less than max-norm",
            "test_error",
            "dropout_max_norm",
            "max_norm",
        ),
        Ordering(
            "dropout errs less with max-norm than with L2",
            "test_error",
            "dropout_max_norm",
            "dropout_l2",
        ),
    ),
    run=run,
    draw=draw,
    quick=Budget(seeds=2, epochs=2, examples=500, time="8 s", options={"hidden": (64, 64)}),
    default=Budget(seeds=4, epochs=50, examples=2000, time="6 min", options={"hidden": (512, 512)}),
    full=Budget(seeds=3, epochs=1667, time="120 h", options={"hidden": (1024, 1024, 2048)}),
    smaller="784-512-512-10 learns 2000 images in 1000 updates; the source's 784-1024-1024-2048-10 "
    "learns all 60000 in up to a million.",
)
