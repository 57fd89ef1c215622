"""A linear layer whose input is dropped."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from fused_dropout._tools.bench.op import BenchOp, Layer, Shape, Typical, in_powers
from fused_dropout.functional import dropout_linear

EAGER = "eager"
P = 0.1


def _eager(input: Tensor, weight: Tensor, p: float) -> Tensor:
    return F.linear(F.dropout(input, p), weight)


def ours(p: float) -> Layer:
    """What this package has."""
    return partial(dropout_linear, p=p)


def eager(p: float) -> Layer:
    """The same in PyTorch, which keeps the dropped input and a mask."""
    return partial(_eager, p=p)


def _input_and_weight(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    *rows, outs, ins = shape
    weight = torch.randn(outs, ins, generator=draw) / ins**0.5
    return [torch.randn(*rows, ins, generator=draw), weight]


def _output_shape(operands: list[Tensor]) -> Shape:
    input, weight = operands
    return (*input.shape[:-1], len(weight))


OP = BenchOp(
    "dropout_linear", ours, {EAGER: eager}, (8, 512, 16, 2048),  # batch, tokens, rank, features
    sized=lambda elements: in_powers(elements, 1, 1, 1),
    shapes=(
        Typical((8, 512, 16, 2048)), Typical((8, 512, 64, 1024)), Typical((2048, 1024, 4096)),
        Typical((512, 64, 64)),
    ),
    p=P, operands=_input_and_weight, output_shape=_output_shape, floor=F.linear,
    elements=lambda problem: torch.Size(problem.shape).numel() // problem.shape[-2],
)  # fmt: skip
OPS = (OP,)
