"""Stochastic depth that skips the dropped samples' work, around a feed-forward layer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fused_dropout import functional
from fused_dropout._tools.bench.op import BenchOp, Layer, Shape, Typical, in_powers
from fused_dropout._tools.bench.ops.drop_path import eager_drop_path

ZEROING, DINOV2 = "zeroing", "index_add"


def feed_forward(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """The branch: [N, T, d] to [N, T, d]."""
    return F.linear(F.gelu(F.linear(x, up)), down)


def dense(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """The floor at p = 0: the residual block without dropping."""
    return x + feed_forward(x, up, down)


def skipping(p: float) -> Layer:
    return lambda x, up, down: functional.drop_path_skip(
        x, lambda x: feed_forward(x, up, down), p, True, residual=x
    )


def zeroing(p: float) -> Layer:
    """As timm and torchvision do it: all samples run."""
    return lambda x, up, down: x + eager_drop_path(feed_forward(x, up, down), p)


def fixed_subset(p: float) -> Layer:
    """The recipe of DINOv2: always the same number of samples, chosen by randperm."""

    def layer(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
        count = max(round(len(x) * (1 - p)), 1)
        chosen = torch.randperm(len(x), device=x.device)[:count]
        branch = feed_forward(x[chosen], up, down)
        return torch.index_add(x, 0, chosen, branch, alpha=len(x) / count)

    return layer


def _operands(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    width = shape[-1]
    up = torch.randn(4 * width, width, generator=draw) / width**0.5
    down = torch.randn(width, 4 * width, generator=draw) / (4 * width) ** 0.5
    return [torch.randn(shape, generator=draw), up, down]


OP = BenchOp(
    "drop_path_skip", skipping, {ZEROING: zeroing, DINOV2: fixed_subset}, (64, 49, 256),
    lambda elements: in_powers(elements, 1, 1, 1),
    (Typical((64, 49, 256)), Typical((32, 197, 384)), Typical((8, 197, 768))),
    p=0.4, ps=(0.1, 0.2, 0.4, 0.5), operands=_operands, floor=dense,
    our_tensors=20, peer_tensors=20, quick=1 << 17,
)  # fmt: skip
OPS = (OP,)
