"""One mask for all steps of a sequence."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from fused_dropout import functional
from fused_dropout._tools.bench.op import BenchOp, Layer, Typical, in_powers


def eager_locked_dropout(input: Tensor, p: float) -> Tensor:
    """As people write it for recurrent networks: a mask of one step, and a product."""
    mask = input.new_empty(1, *input.shape[1:]).bernoulli_(1 - p).div_(1 - p)
    return input * mask


def _ours(p: float) -> Layer:
    return partial(functional.locked_dropout, p=p)


def _eager(p: float) -> Layer:
    return partial(eager_locked_dropout, p=p)


OPS = (
    BenchOp(
        "locked_dropout", _ours, {"eager": _eager}, (512, 32, 1024),
        sized=lambda elements: in_powers(elements, 1, 1, 1),
        shapes=(Typical((70, 80, 400)), Typical((512, 32, 1024)), Typical((1024, 8, 768))),
    ),
)  # fmt: skip
