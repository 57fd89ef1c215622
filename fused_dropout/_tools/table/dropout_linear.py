"""A linear layer whose input is dropped."""

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

_NAME = "dropout_linear"
_LAYER = case(in_features=9, out_features=5, p=0.3)


def _input_weight_bias(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    return [normal(shape, draw), normal((5, shape[-1]), draw), normal((5,), draw)]


OPS = (
    Op(
        _NAME, functional.dropout_linear, reference.dropout_linear,
        RATES, ((3, 2, 33), (5, 129), (9,), (40, 30_000)),
        small=((3, 4), case(p=0.5)), operands=_input_weight_bias,
        operand_names=("input", "weight", "bias"), idle=IDLE, elementwise=False,
        layers=(Layer(nn.DropoutLinear, _LAYER, ((6, 9),)),),
        operators=(_NAME, f"{_NAME}_d_input", f"{_NAME}_d_weight"),
    ),
)  # fmt: skip

_SETTINGS = (0.3, 1.5)  # p, scale


def _operands() -> list[Tensor]:
    """input, weight, bias and grad_output; rows begin within groups of mask bits."""
    return normals((3, 2, 140), (9, 140), (9,), (3, 2, 9))


def _calls() -> list[Arguments]:
    input, weight, bias, _ = _operands()
    return [
        (input, weight, bias, state(), *_SETTINGS),
        (input.transpose(0, 1), weight, None, state(), *_SETTINGS),
    ]


def _calls_of_d_input() -> list[Arguments]:
    _, weight, _, grad = _operands()
    return [
        (grad, weight, state(), *_SETTINGS),
        (grad.transpose(0, 1), weight, state(), *_SETTINGS),
    ]


def _calls_of_d_weight() -> list[Arguments]:
    input, _, _, grad = _operands()
    return [
        (grad, input, state(), *_SETTINGS),
        (grad.transpose(0, 1), input.transpose(0, 1), state(), *_SETTINGS),
    ]


OPERATORS = (
    Operator(_NAME, _calls, ("input", "weight", "bias")),
    Operator(f"{_NAME}_d_input", _calls_of_d_input, ("grad_output", "weight")),
    Operator(f"{_NAME}_d_weight", _calls_of_d_weight, ("grad_output", "input")),
)
