"""Attention weights dropped, and their product with the values."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from fused_dropout import functional
from fused_dropout._tools.bench.op import BenchOp, Layer, Shape, Typical, in_powers

TORCH = "torch"
HEAD = 64  # features of a head


def torchs_product(weights: Tensor, value: Tensor, p: float) -> Tensor:
    """The explicit form that attention layers have."""
    return F.dropout(weights, p) @ value


def _ours(p: float) -> Layer:
    return partial(functional.dropout_matmul, p=p)


def _torch(p: float) -> Layer:
    return partial(torchs_product, p=p)


def _weights_and_values(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    weights = torch.rand(shape, generator=draw).div_(shape[-1])
    return [weights, torch.randn(*shape[:-2], shape[-1], HEAD, generator=draw)]


OP = BenchOp(
    "dropout_matmul", _ours, {TORCH: _torch}, (8, 12, 512, 512),
    sized=lambda elements: in_powers(elements, 1, 1, 2, 2),
    shapes=(Typical((8, 12, 197, 197)), Typical((8, 12, 512, 512)), Typical((1, 16, 2048, 2048))),
    p=0.1, operands=_weights_and_values,
    output_shape=lambda operands: (*operands[0].shape[:-1], HEAD),
    floor=torch.matmul,
)  # fmt: skip
OPS = (OP,)
