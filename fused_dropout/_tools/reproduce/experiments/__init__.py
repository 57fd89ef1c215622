"""The experiments, one file each, in the order of the list."""

from __future__ import annotations

from fused_dropout._tools.reproduce.experiment import Experiment
from fused_dropout._tools.reproduce.experiments import claims, d2l, dropconnect, dropconnect_cnn

EXPERIMENTS: tuple[Experiment, ...] = (
    d2l.EXPERIMENT,
    dropconnect.EXPERIMENT,
    dropconnect_cnn.EXPERIMENT,
    dropconnect_cnn.CIFAR10,
    claims.EXPERIMENT,
)


def find_experiment(name: str) -> Experiment:
    """The experiment of this name."""
    return next(experiment for experiment in EXPERIMENTS if experiment.name == name)
