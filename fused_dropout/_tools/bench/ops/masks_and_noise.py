"""Masks and noise drawn by themselves. The operand is a tensor of the wanted size, unread."""

from __future__ import annotations

import torch
from torch import Tensor

import fused_dropout
from fused_dropout._tools.bench.op import FORWARD, BenchOp, Layer, LayerAt, Shape, Typical


def _mask(p: float) -> Layer:
    return lambda like: fused_dropout.mask(like.shape, p, seed=0, device=like.device)


def _packed_mask(p: float) -> Layer:
    return lambda like: fused_dropout.packed_mask(like.shape, p, seed=0, device=like.device)


def _torchs_mask(p: float) -> Layer:
    return lambda like: torch.empty_like(like, dtype=torch.bool).bernoulli_(1 - p)


def _uniform(p: None) -> Layer:
    return lambda like: fused_dropout.uniform_noise(
        like.shape, seed=0, dtype=like.dtype, device=like.device
    )


def _normal(p: None) -> Layer:
    return lambda like: fused_dropout.normal_noise(
        like.shape, seed=0, dtype=like.dtype, device=like.device
    )


def _unread(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    return [torch.zeros(shape)]


def _noise(name: str, ours: LayerAt, torchs: Layer) -> BenchOp:
    return BenchOp(
        name, ours, {"torch": lambda p: torchs}, _SHAPE, lambda elements: (elements,), _SHAPES,
        p=None, ps=(), dtypes=("float32", "float64"), operands=_unread, phases=(FORWARD,),
        moved={FORWARD: 1},
    )  # fmt: skip


def _bits(name: str, ours: LayerAt, bytes_per_element: float) -> BenchOp:
    return BenchOp(
        name, ours, {"torch": _torchs_mask}, _SHAPE, lambda elements: (elements,), _SHAPES,
        dtypes=("float32",), operands=_unread, phases=(FORWARD,),
        moved={FORWARD: bytes_per_element / 4},
    )  # fmt: skip


_SHAPE = (4096, 4096)
_SHAPES = (Typical(_SHAPE), Typical((128, 1024)), Typical((1 << 20, 10)))

OPS = (
    _bits("mask", _mask, 1),
    _bits("packed_mask", _packed_mask, 1 / 8),
    _noise("uniform_noise", _uniform, torch.rand_like),
    _noise("normal_noise", _normal, torch.randn_like),
)
