"""Stochastic depth, and its sum with the residual in one pass."""

from __future__ import annotations

from functools import partial

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
    in_powers,
    installed,
)

SHAPE = (128, 197, 768)  # the tokens of a ViT-B
MAP = (32, 64, 56, 56)  # of a ResNet
EAGER = "eager"


def eager_drop_path(branch: Tensor, p: float) -> Tensor:
    """A mask of one number per sample, as timm and torchvision write it."""
    keep = branch.new_empty(len(branch), *[1] * (branch.dim() - 1)).bernoulli_(1 - p).div_(1 - p)
    return branch * keep


def fused(p: float) -> Layer:
    return partial(functional.drop_path, drop_prob=p, training=True)


def eager(p: float) -> Layer:
    return partial(eager_drop_path, p=p)


def fused_sum(p: float) -> Layer:
    return partial(functional.drop_path_add, drop_prob=p, training=True)


def eager_sum(p: float) -> Layer:
    return lambda x, branch: x + eager_drop_path(branch, p)


def timms(p: float) -> Layer:
    layer = installed("timm", "timm.layers", "drop_path")
    return lambda branch: layer(branch, p, True)


def timms_sum(p: float) -> Layer:
    layer = timms(p)
    return lambda x, branch: x + layer(branch)


def torchvisions(p: float) -> Layer:
    layer = installed("torchvision", "torchvision.ops", "stochastic_depth")
    return lambda branch: layer(branch, p, "row", True)


def torchvisions_sum(p: float) -> Layer:
    layer = torchvisions(p)
    return lambda x, branch: x + layer(branch)


def _two(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    return [torch.randn(shape, generator=draw) for _ in range(2)]


def _samples(elements: int) -> Shape:
    return in_powers(elements, 1, 1, 2)


_SHAPES = (Typical(SHAPE), Typical(MAP), Typical(MAP, "channels_last"), Typical((256, 49, 768)))

DROP_PATH = BenchOp(
    "drop_path", fused, {EAGER: eager, "timm": timms, "torchvision": torchvisions},
    SHAPE, _samples, _SHAPES, p=0.1,
)  # fmt: skip
DROP_PATH_ADD = BenchOp(
    "drop_path_add", fused_sum,
    {EAGER: eager_sum, "timm": timms_sum, "torchvision": torchvisions_sum},
    SHAPE, _samples, _SHAPES, p=0.1, operands=_two,
    moved={FORWARD: 3, TOTAL: 5},  # the gradient of x is the one that comes in
)  # fmt: skip
OPS = (DROP_PATH, DROP_PATH_ADD)
