"""Concrete dropout, whose p is learned."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_dropout import functional
from fused_dropout._tools.bench.op import FORWARD, TOTAL, BenchOp, Layer, Shape, Typical

EAGER = "eager"
TEMPERATURE = 0.1


def eager_concrete_dropout(input: Tensor, logit_p: Tensor) -> Tensor:
    """As the code in the appendix of Gal, Hron and Kendall 2017 has it, but for its eps in p."""
    eps = 1e-7
    u = torch.rand_like(input)
    p = torch.sigmoid(logit_p)
    logit_z = torch.log(p) - torch.log(1 - p) + torch.log(u + eps) - torch.log(1 - u + eps)
    return input * (1 - torch.sigmoid(logit_z / TEMPERATURE)) / (1 - p)


def fused_concrete_dropout(input: Tensor, logit_p: Tensor) -> Tensor:
    return functional.concrete_dropout(input, logit_p, TEMPERATURE)


def _ours(p: None) -> Layer:
    return fused_concrete_dropout


def _eager(p: None) -> Layer:
    return eager_concrete_dropout


def _input_logit(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    return [torch.randn(shape, generator=draw), torch.tensor(-2.0)]


OP = BenchOp(
    "concrete_dropout", _ours, {EAGER: _eager}, (1 << 24,), lambda elements: (elements,),
    (Typical((256, 4096)), Typical((8, 1024, 1024)), Typical((32, 64, 56, 56), "channels_last")),
    p=None, ps=(), operands=_input_logit,
    moved={FORWARD: 2, TOTAL: 5}, peer_tensors=20,
)  # fmt: skip
OPS = (OP,)
