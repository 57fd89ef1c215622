"""Bias, activation, dropout and residual in one pass."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fused_dropout._tools.bench.op import (
    FORWARD,
    TOTAL,
    BenchOp,
    Layer,
    Shape,
    Typical,
    in_powers,
)
from fused_dropout.functional import bias_act_dropout_add

P = 0.1
EAGER = "eager"


def eager(p: float) -> Layer:
    """What is fused, in PyTorch."""

    def layer(input: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return F.dropout(F.gelu(input + bias), p) + residual

    return layer


def fused(p: float) -> Layer:
    """The same by this package."""

    def layer(input: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        return bias_act_dropout_add(input, bias, residual, p, "gelu")

    return layer


def _input_bias_residual(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    return [torch.randn(sizes, generator=draw) for sizes in (shape, shape[-1:], shape)]


# Forward input, residual and output, backward gradient, input and its gradient; the residual's
# gradient is the one that comes in.
MOVED = {FORWARD: 3, "backward": 3, TOTAL: 6}

OP = BenchOp(
    "bias_act_dropout_add", fused, {EAGER: eager}, (8, 1024, 3072),
    sized=lambda elements: in_powers(elements, 1, 2),
    shapes=(Typical((8, 1024, 3072)), Typical((32, 128, 3072)), Typical((128, 197, 3072))),
    p=P, operands=_input_bias_residual, moved=MOVED, peer_tensors=12,
)  # fmt: skip
OPS = (OP,)
