"""The experiments, one file each, in the order of the list."""

from __future__ import annotations

from fused_dropout._tools.reproduce.experiment import Experiment
from fused_dropout._tools.reproduce.experiments import (
    activations,
    attention,
    batchnorm,
    claims,
    conv,
    d2l,
    data_size,
    depth,
    dropconnect,
    dropconnect_cnn,
    features,
    noises,
    random_labels,
    rates,
    regularizers,
    uncertainty,
)

EXPERIMENTS: tuple[Experiment, ...] = (
    claims.EXPERIMENT,
    d2l.EXPERIMENT,
    dropconnect.EXPERIMENT,
    dropconnect_cnn.EXPERIMENT,
    dropconnect_cnn.CIFAR10,
    features.EXPERIMENT,
    activations.EXPERIMENT,
    noises.EXPERIMENT,
    rates.EXPERIMENT,
    data_size.EXPERIMENT,
    regularizers.EXPERIMENT,
    random_labels.EXPERIMENT,
    conv.EXPERIMENT,
    batchnorm.EXPERIMENT,
    depth.EXPERIMENT,
    attention.EXPERIMENT,
    uncertainty.EXPERIMENT,
)


def find_experiment(name: str) -> Experiment:
    """The experiment of this name."""
    return next(experiment for experiment in EXPERIMENTS if experiment.name == name)
