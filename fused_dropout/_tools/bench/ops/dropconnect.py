"""DropConnect with a mask for each row, and with masks that rows share."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fused_dropout._tools.baselines import naive_dropconnect_linear, naive_shared_dropconnect_linear
from fused_dropout._tools.bench.dropconnect import NAIVE
from fused_dropout._tools.bench.op import BenchOp, Layer, Shape, Typical, in_powers
from fused_dropout.functional import dropconnect_linear


def naive(
    input: Tensor, weight: Tensor, bias: Tensor, p: float, mask: str | int = "example"
) -> Tensor:
    """What people write: one mask for all rows, one for each sequence, or one for each row."""
    rows = input.flatten(0, -2)
    if mask == "batch":
        output = naive_shared_dropconnect_linear(rows, weight, bias, p, 1)
    elif mask == "example" and input.dim() == 3:
        output = naive_shared_dropconnect_linear(rows, weight, bias, p, len(input))
    else:
        output = naive_dropconnect_linear(rows, weight, bias, p)
    return output.unflatten(0, input.shape[:-1])


def _ours(p: float, mask: Any = "example") -> Layer:
    return lambda input, weight, bias: dropconnect_linear(input, weight, bias, p, mask=mask)


def _naive(p: float, mask: str | int = "example") -> Layer:
    return partial(naive, p=p, mask=mask)


def _input_weight_bias(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    *rows, outs, ins = shape
    weight = torch.randn(outs, ins, generator=draw) / ins**0.5
    return [
        torch.randn(*rows, ins, generator=draw), weight, torch.randn(outs, generator=draw)
    ]  # fmt: skip


def _output_shape(operands: list[Tensor]) -> Shape:
    input, weight, _ = operands
    return (*input.shape[:-1], len(weight))


def _naive_elements(problem: Typical) -> int:
    """Of the masked weights: [O, I], or as many of them as there are masks."""
    if dict(problem.options).get("mask") == "batch":
        return prod(problem.shape[-2:])
    sequences = len(problem.shape) == 4
    return prod(problem.shape) // (problem.shape[1] if sequences else 1)


SHAPE = (128, 1024, 1024)  # Table 1 of Wan et al. 2013: batch, out_features, in_features
OP = BenchOp(
    "dropconnect", _ours, {NAIVE: _naive}, SHAPE,
    sized=lambda elements: in_powers(elements, 1, 1, 1),
    shapes=(
        Typical((16, 64, 64)), Typical((64, 256, 256)), Typical(SHAPE),
        Typical((128, 4096, 4096)),
        Typical((32, 128, 1024, 1024)),  # sequences: one mask for each
        Typical((4096, 1024, 1024), options=(("mask", "batch"),)),
    ),
    operands=_input_weight_bias, output_shape=_output_shape, floor=F.linear,
    our_tensors=0, peer_tensors=4, elements=_naive_elements, quick=1 << 23,
)  # fmt: skip
OPS = (OP,)
