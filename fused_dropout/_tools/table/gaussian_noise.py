"""Noise of a given mean and variance, and the layers on it."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_dropout import functional, nn, reference
from fused_dropout._tools.table._row import (
    Arguments,
    Layer,
    Op,
    Operator,
    Shape,
    case,
    normal,
    normals,
    state,
)


def _mean_variance(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    return [normal(shape, draw), 0.1 + normal(shape, draw).square()]


_LAYER = case(in_features=9, out_features=5, log_sigma2_init=-1.0)

OPS = (
    Op(
        "gaussian_noise", functional.gaussian_noise, reference.gaussian_noise, (case(),),
        small=((3, 4), ()), operands=_mean_variance, operand_names=("mean", "variance"),
        layers=(
            Layer(nn.GaussianNoise, case(std=0.4), ((6, 40),)),
            Layer(nn.VariationalDropoutLinear, _LAYER, ((6, 9),)),
        ),
        operators=("gaussian_noise", "gaussian_noise_d_variance"),
    ),
)  # fmt: skip


def _calls() -> list[Arguments]:
    """The operands of the noise, and of its gradient, which has no use for the mean."""
    mean, deviation, transposed = normals((6, 14), (6, 14), (14, 6))
    variance = deviation.square() + 0.1
    return [(mean, variance, state(), 0.5), (transposed.t(), variance, state(), 0.5)]


OPERATORS = (
    Operator("gaussian_noise", _calls, ("mean", "variance")),
    Operator("gaussian_noise_d_variance", _calls, ("grad_output", "variance")),
)
