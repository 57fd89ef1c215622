"""Gaussian dropout."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fused_dropout import functional
from fused_dropout._tools.bench.op import BenchOp, Layer, Typical

ELEMENTS = 1 << 24
EAGER = "eager"


def eager_gaussian_dropout(input: Tensor, p: float) -> Tensor:
    return input * (1 + (p / (1 - p)) ** 0.5 * torch.randn_like(input))


def _ours(p: float) -> Layer:
    return partial(functional.gaussian_dropout, p=p)


def _eager(p: float) -> Layer:
    return partial(eager_gaussian_dropout, p=p)


OP = BenchOp(
    "gaussian_dropout", _ours, {EAGER: _eager}, (ELEMENTS,), lambda elements: (elements,),
    (Typical((256, 4096)), Typical((8, 1024, 1024)), Typical((32, 64, 56, 56), "channels_last")),
)  # fmt: skip
OPS = (OP,)
