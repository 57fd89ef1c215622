"""Recurrent states of which some elements stay as they were."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_dropout import functional, nn, reference
from fused_dropout._tools.table._row import (
    IDLE,
    RATES,
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


def _new_and_old(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    return [normal(shape, draw), normal(shape, draw)]


OPS = (
    Op(
        "zoneout", functional.zoneout, reference.zoneout, RATES,
        operands=_new_and_old, operand_names=("input", "previous"), idle=IDLE,
        layers=(Layer(nn.Zoneout, case(p=0.4), ((6, 40), (6, 40))),),
        operators=("zoneout", "zoneout_backward"),
    ),
)  # fmt: skip


def _calls() -> list[Arguments]:
    input, previous, transposed = normals((6, 14), (6, 14), (14, 6))
    return [(input, previous, state(), 0.3), (transposed.t(), previous, state(), 0.3)]


def _backward_calls() -> list[Arguments]:
    grad, transposed = normals((6, 14), (14, 6))
    return [(grad, state(), 0.3), (transposed.t(), state(), 0.3)]


OPERATORS = (
    Operator("zoneout", _calls, ("input", "previous")),
    Operator("zoneout_backward", _backward_calls, ("grad",)),
)
