"""Weights under the masks of DropConnect."""

from __future__ import annotations

from functools import partial

from fused_dropout import functional
from fused_dropout._tools.bench.op import BenchOp, Layer, Typical, in_powers
from fused_dropout._tools.bench.ops.dropout import TORCH, torchs


def _ours(p: float) -> Layer:
    return partial(functional.mask_weight, p=p)


OP = BenchOp(
    "mask_weight", _ours, {TORCH: torchs}, (4096, 4096),
    lambda elements: in_powers(elements, 1, 1),
    (Typical((1024, 1024)), Typical((512, 784)), Typical((256, 64, 3, 3))),
)  # fmt: skip
OPS = (OP,)
