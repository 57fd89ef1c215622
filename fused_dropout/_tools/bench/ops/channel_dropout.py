"""Dropout of whole channels."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch.nn import functional as F

from fused_dropout import functional
from fused_dropout._tools.bench.op import BenchOp, Shape, Typical, in_powers


def _bench_op(dimensions: int, shape: Shape, *shapes: Typical) -> BenchOp:
    name = f"dropout{dimensions}d"

    def sized(elements: int) -> Shape:
        return in_powers(elements, *[1] * (2 + dimensions))

    def layer_of(namespace: Any) -> Any:
        return lambda p: partial(getattr(namespace, name), p=p)

    return BenchOp(
        name, layer_of(functional), {"torch": layer_of(F)}, shape, sized, (Typical(shape), *shapes)
    )


DROPOUT2D = _bench_op(
    2, (16, 256, 64, 64), Typical((16, 256, 64, 64), "channels_last"),
    Typical((32, 64, 56, 56)), Typical((16, 3, 224, 224)),
    Typical((16, 3, 224, 224), "channels_last"),
)  # fmt: skip
OPS = (
    _bench_op(1, (64, 512, 512), Typical((32, 80, 3000))),
    DROPOUT2D,
    _bench_op(3, (4, 64, 16, 64, 64), Typical((4, 64, 16, 64, 64), "channels_last_3d")),
)  # fmt: skip
