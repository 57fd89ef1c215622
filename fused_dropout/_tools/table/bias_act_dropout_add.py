"""Bias, activation, dropout and residual in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_dropout import functional, nn, reference
from fused_dropout._tools.table._row import (
    IDLE,
    WITH_BATCH,
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

_NAME = "bias_act_dropout_add"
_ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")
_LAYER = case(features=9, p=0.4, activation="silu")


def _with_bias(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    return [normal(shape, draw), normal(shape[-1:], draw), normal(shape, draw)]


OPS = (
    Op(
        _NAME, functional.bias_act_dropout_add, reference.bias_act_dropout_add,
        tuple(case(activation=name, p=0.1) for name in _ACTIVATIONS), WITH_BATCH,
        small=((3, 4), case(activation="gelu", p=0.5)),
        operands=_with_bias, operand_names=("input", "bias", "residual"), idle=IDLE,
        layers=(Layer(nn.BiasActDropoutAdd, _LAYER, ((6, 9), (6, 9))),),
        operators=(_NAME, f"{_NAME}_d_input", f"{_NAME}_d_both"),
    ),
)  # fmt: skip


def _calls() -> list[Arguments]:
    input, bias, residual, transposed = normals((6, 14), (14,), (6, 14), (14, 6))
    return [
        (input, bias, residual, state(), 0.3, "gelu", 1.5),
        (transposed.t(), None, None, state(), 0.3, "none", 1.5),
    ]


def _calls_of_gradients() -> list[Arguments]:
    grad, input, bias, transposed = normals((6, 14), (6, 14), (14,), (14, 6))
    return [
        (grad, input, bias, state(), 0.3, "gelu", 1.5),
        (transposed.t(), None, None, state(), 0.3, "none", 1.5),
    ]


OPERATORS = (
    Operator(_NAME, _calls, ("input", "bias", "residual")),
    Operator(f"{_NAME}_d_input", _calls_of_gradients, ("grad_output", "input", "bias")),
    Operator(f"{_NAME}_d_both", _calls_of_gradients, ("grad_output", "input", "bias")),
)
