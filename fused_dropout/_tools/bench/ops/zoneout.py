"""A recurrent state of which some elements stay as they were."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fused_dropout import functional
from fused_dropout._tools.bench.op import FORWARD, TOTAL, BenchOp, Layer, Shape, Typical

WHERE, LERP = "where", "lerp"


def where_zoneout(input: Tensor, previous: Tensor, p: float) -> Tensor:
    """A choice by a mask of bytes, as it is mostly written."""
    return torch.where(torch.empty_like(input, dtype=torch.bool).bernoulli_(p), previous, input)


def lerp_zoneout(input: Tensor, previous: Tensor, p: float) -> Tensor:
    """The formula of Haste's cells, by a mask of numbers."""
    return (input - previous) * torch.empty_like(input).bernoulli_(1 - p) + previous


def _ours(p: float) -> Layer:
    return partial(functional.zoneout, p=p)


def _where(p: float) -> Layer:
    return partial(where_zoneout, p=p)


def _lerp(p: float) -> Layer:
    return partial(lerp_zoneout, p=p)


def _new_and_old(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    return [torch.randn(shape, generator=draw) for _ in range(2)]


_STATES = (Typical((32, 256)), Typical((256, 1024)), Typical((64, 64, 56, 56), "channels_last"))

OP = BenchOp(
    "zoneout", _ours, {WHERE: _where, LERP: _lerp}, (1 << 24,), lambda elements: (elements,),
    _STATES, operands=_new_and_old,
    moved={FORWARD: 3, TOTAL: 6},  # two in and one out, one in and two out
)  # fmt: skip
OPS = (OP,)
