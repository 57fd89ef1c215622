"""Alpha dropout of elements and of channels."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch.nn import functional as F

from fused_dropout import functional
from fused_dropout._tools.bench.op import BenchOp, LayerAt, Shape, Typical, in_powers


def _layer_of(namespace: Any, name: str) -> LayerAt:
    # torch's alpha dropouts take training=False for granted.
    return lambda p: partial(getattr(namespace, name), p=p, training=True)


def _bench_op(name: str, shape: Shape, shares: int, *shapes: Typical) -> BenchOp:
    return BenchOp(
        name, _layer_of(functional, name), {"torch": _layer_of(F, name)}, shape,
        lambda elements: in_powers(elements, *[1] * shares), shapes,
    )  # fmt: skip


OPS = (
    _bench_op("alpha_dropout", (8, 1024, 2048), 1, Typical((256, 4096)), Typical((8, 1024, 2048))),
    _bench_op(
        "feature_alpha_dropout", (16, 256, 64, 64), 4, Typical((32, 64, 56, 56)),
        Typical((32, 64, 56, 56), "channels_last"),
    ),
)  # fmt: skip
