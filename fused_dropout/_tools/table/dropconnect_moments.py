"""DropConnect's inference: the activations' mean over normal pre-activations of its moments."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fused_dropout import functional, reference
from fused_dropout._tools.table._row import Arguments, Op, Operator, Shape, case, normal, normals


def _input_weight_bias(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    return [normal(shape, draw), normal((5, shape[-1]), draw), normal((5,), draw)]


OPS = (
    Op(
        "dropconnect_gaussian",
        partial(functional.dropconnect_gaussian, activation="tanh", samples=9),
        partial(reference.dropconnect_gaussian, activation=torch.tanh, samples=9),
        (case(p=0.5), case(p=0.3, convention="paper"), case(p=0.1, mask_bias=False)),
        ((3, 2, 33), (60, 129), (5, 129)), small=((3, 4), case(p=0.5)), operands=_input_weight_bias,
        operand_names=("input", "weight", "bias"), idle=(case(p=0.0), case(p=1.0)),
        elementwise=False, operators=("dropconnect_moments",),
    ),
)  # fmt: skip

_SETTINGS = (0.7, 0.21, True)  # mean_scale, variance_scale, mask_bias


def _calls() -> list[Arguments]:
    input, weight, bias, transposed = normals((6, 140), (9, 140), (9,), (140, 6))
    return [
        (input, weight, bias, *_SETTINGS),
        (transposed.t(), weight, None, 1.0, 1.0, False),
        (input, weight, bias, 1.0, 1.0, False),
    ]


OPERATORS = (Operator("dropconnect_moments", _calls, ("input", "weight", "bias")),)
