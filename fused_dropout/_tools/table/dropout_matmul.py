"""A product with a dropped operand: attention weights and values."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_dropout import functional, reference
from fused_dropout._tools.table._row import IDLE, RATES, Op, Operator, Shape, case, normal


def _weights_and_values(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    """Weights of `shape`, and as many values of 7 features as they have columns."""
    return [normal(shape, draw), normal((*shape[:-2], shape[-1], 7), draw)]


OPS = (
    Op(
        "dropout_matmul", functional.dropout_matmul, reference.dropout_matmul, RATES,
        ((1, 1), (3, 5, 31), (2, 7, 9, 11), (4, 300)), small=((2, 3, 4), case(p=0.5)),
        operands=_weights_and_values, operand_names=("input", "other"), idle=IDLE,
        elementwise=False,
    ),
)  # fmt: skip

OPERATORS: tuple[Operator, ...] = ()  # it runs dropout's
