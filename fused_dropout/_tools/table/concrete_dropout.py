"""Concrete dropout."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_dropout import functional, nn, reference
from fused_dropout._tools.table._row import (
    MAPS,
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


def _with_logit(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    return [normal(shape, draw), torch.tensor([-1.0], dtype=torch.float64, device=draw.device)]


OPS = (
    Op(
        "concrete_dropout", functional.concrete_dropout, reference.concrete_dropout,
        (case(temperature=0.1), case(temperature=0.7)), small=((3, 4), case(temperature=0.7)),
        operands=_with_logit, operand_names=("input", "logit_p"),
        layers=(Layer(nn.ConcreteDropout, case(), ((6, 40),)),),
        operators=("concrete_dropout", "concrete_dropout_backward"),
    ),
    Op(
        "concrete_dropout, shared", functional.concrete_dropout, reference.concrete_dropout,
        tuple(case(temperature=0.7, broadcast_dims=d) for d in ((0,), (1,), (0, 2), (1, 2, 3))),
        (*MAPS, (3, 5, 8, 40)), small=((3, 4, 2), case(temperature=0.7, broadcast_dims=(1,))),
        operands=_with_logit, operand_names=("input", "logit_p"),
    ),
)  # fmt: skip


def _calls() -> list[Arguments]:
    input, logit_p, transposed = normals((6, 14), (1,), (14, 6))
    return [
        (input, logit_p, state(), 0.5),
        (transposed.t(), logit_p, state(), 0.5),
        (transposed.t(), logit_p, state(), 0.5, [1]),
    ]


def _calls_of_backward() -> list[Arguments]:
    grad, input, logit_p = normals((6, 14), (6, 14), (1,))
    return [(grad, input, logit_p, state(), 0.5), (grad, input, logit_p, state(), 0.5, [1])]


OPERATORS = (
    Operator("concrete_dropout", _calls, ("input", "logit_p")),
    Operator(
        "concrete_dropout_backward", _calls_of_backward, ("grad_output", "input", "logit_p")
    ),
)  # fmt: skip
