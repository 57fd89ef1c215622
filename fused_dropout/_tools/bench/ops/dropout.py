"""Dropout of elements, of whole steps' features, and in place."""

from __future__ import annotations

from functools import partial

from torch.nn import functional as F

from fused_dropout import functional
from fused_dropout._tools.bench.op import (
    FORWARD,
    BenchOp,
    Layer,
    Shape,
    Typical,
)

TORCH = "torch"
SHAPE = (16, 256, 64, 64)


def ours(p: float) -> Layer:
    return partial(functional.dropout, p=p)


def torchs(p: float) -> Layer:
    return partial(F.dropout, p=p)


def ours_in_place(p: float) -> Layer:
    return partial(functional.dropout, p=p, inplace=True)


def torchs_in_place(p: float) -> Layer:
    return partial(F.dropout, p=p, inplace=True)


def _flat(elements: int) -> Shape:
    return (elements,)


_MAPS = (
    Typical((8, 1024, 3072)),
    Typical((128, 197, 768)),
    Typical((32, 64, 56, 56)),
    Typical((32, 64, 56, 56), "channels_last"),
    Typical((16, 3, 224, 224)),
    Typical((16, 3, 224, 224), "channels_last"),
    Typical((256, 4096)),
)

DROPOUT = BenchOp("dropout", ours, {TORCH: torchs}, SHAPE, _flat, _MAPS)
DROPOUT_INPLACE = BenchOp(
    "dropout_inplace", ours_in_place, {TORCH: torchs_in_place}, SHAPE, _flat, _MAPS,
    phases=(FORWARD,),
)  # fmt: skip
OPS = (DROPOUT, DROPOUT_INPLACE)
