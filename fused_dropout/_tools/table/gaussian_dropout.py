"""Gaussian dropout."""

from __future__ import annotations

from fused_dropout import functional, nn, reference
from fused_dropout._tools.table._row import (
    IDLE,
    RATES,
    Arguments,
    Layer,
    Op,
    Operator,
    case,
    normals,
    state,
)

OPS = (
    Op(
        "gaussian_dropout", functional.gaussian_dropout, reference.gaussian_dropout, RATES,
        inplace=True, idle=IDLE[:1],
        layers=(Layer(nn.GaussianDropout, case(p=0.4), ((6, 40),)),),
        operators=("gaussian_dropout", "gaussian_dropout_"),
    ),
)  # fmt: skip


def _calls() -> list[Arguments]:
    input, transposed = normals((6, 14), (14, 6))
    return [(input, state(), 0.5), (transposed.t(), state(), 0.5)]


OPERATORS = (
    Operator("gaussian_dropout", _calls, ("input",)),
    Operator("gaussian_dropout_", _calls, ("input",)),
)
