"""Whole tokens, zeroed or taken out of the sequence."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from fused_dropout import functional
from fused_dropout._tools.bench.op import FORWARD, TOTAL, BenchOp, Layer, Shape, Typical, in_powers

TORCH, EAGER = "torch", "eager"
SHAPE = (128, 197, 768)  # the tokens of a ViT-B
PART = 0.5  # of the patches, dropped: the shape of the result depends on it


def eager_patch_dropout(x: Tensor, p: float) -> Tensor:
    """As timm writes it: prefix and patches apart, a gather, and both together again."""
    prefix, patches = x[:, :1], x[:, 1:]
    samples, count = patches.shape[:2]
    order = torch.argsort(torch.randn(samples, count, device=x.device), dim=-1)
    stay = order[:, : max(1, int(count * (1 - p)))]
    index = stay.unsqueeze(-1).expand(-1, -1, x.shape[2])
    return torch.cat((prefix, patches.gather(1, index)), dim=1)


def _tokens(p: float) -> Layer:
    return partial(functional.token_dropout, p=p)


def _torchs_tokens(p: float) -> Layer:
    return partial(F.dropout1d, p=p)


def _patches(p: None) -> Layer:
    return partial(functional.patch_dropout, prob=PART)


def _eager_patches(p: None) -> Layer:
    return partial(eager_patch_dropout, p=PART)


def _sized(elements: int) -> Shape:
    return in_powers(elements, 1, 1, 2)


def _stay(operands: list[Tensor]) -> Shape:
    samples, tokens, features = operands[0].shape
    patches = tokens - 1
    return samples, 1 + min(patches, max(1, int(patches * (1 - PART)))), features


_SHAPES = (Typical(SHAPE), Typical((256, 50, 384)), Typical((8, 1024, 1024)))

TOKENS = BenchOp("token_dropout", _tokens, {TORCH: _torchs_tokens}, SHAPE, _sized, _SHAPES)
PATCHES = BenchOp(
    "patch_dropout", _patches, {EAGER: _eager_patches}, SHAPE, _sized, _SHAPES, p=None, ps=(),
    output_shape=_stay,
    moved={FORWARD: 1, TOTAL: 2.5},  # half in and out; half in, and all out for the gradient
)  # fmt: skip
OPS = (TOKENS, PATCHES)
