"""Noise of a given mean and variance."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_dropout import functional
from fused_dropout._tools.bench.op import (
    FORWARD,
    TOTAL,
    BenchOp,
    Layer,
    Shape,
    Typical,
)

EAGER = "eager"


def eager_gaussian_noise(mean: Tensor, variance: Tensor) -> Tensor:
    return mean + (variance + 1e-8).sqrt() * torch.randn_like(mean)


def _ours(p: None) -> Layer:
    return functional.gaussian_noise


def _eager(p: None) -> Layer:
    return eager_gaussian_noise


def _mean_variance(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    mean = torch.randn(shape, generator=draw)
    return [mean, torch.randn(shape, generator=draw).square()]


OP = BenchOp(
    "gaussian_noise", _ours, {EAGER: _eager}, (1 << 24,), lambda elements: (elements,),
    (Typical((128, 1024)), Typical((8, 1024, 1024))), p=None, ps=(), operands=_mean_variance,
    moved={FORWARD: 3, TOTAL: 6},  # the gradient of the mean is the one that comes in
    peer_tensors=12,
)  # fmt: skip
OPS = (OP,)
