"""DropConnect's moments, and the Gaussian inference on them."""

from __future__ import annotations

from functools import partial
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from fused_dropout import functional
from fused_dropout._tools.bench.op import BenchOp, Layer, Shape, Typical, in_powers

TWO_PRODUCTS, EAGER = "two products", "eager"


def _input_weight_bias(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    rows, outs, ins = shape
    weight = torch.randn(outs, ins, generator=draw) / ins**0.5
    input = torch.randn(rows, ins, generator=draw)
    return [input, weight, torch.randn(outs, generator=draw)]


def _rows(operands: list[Tensor]) -> Shape:
    input, weight, _ = operands
    return (len(input), len(weight))


def two_products(input: Tensor, weight: Tensor, bias: Tensor, p: float) -> tuple[Tensor, Tensor]:
    """What people write: the layer, and the layer of all squares."""
    squares = F.linear(input.square(), weight.square(), bias.square())
    return F.linear(input, weight, bias), p / (1 - p) * squares


def eager_gaussian(
    input: Tensor, weight: Tensor, bias: Tensor, p: float, samples: int = 1000
) -> Tensor:
    """The same, and all samples at once."""
    mean, variance = two_products(input, weight, bias, p)
    noise = torch.randn(samples, *mean.shape, dtype=mean.dtype, device=mean.device)
    return (mean + variance.sqrt() * noise).relu().mean(0)


def _sum(moments: tuple[Tensor, Tensor]) -> Tensor:
    """One tensor of both, as the harness wants it."""
    mean, variance = moments
    return mean + variance


def _ours(p: float) -> Layer:
    return lambda x, weight, bias: _sum(functional.dropconnect_moments(x, weight, bias, p))


def _two_products(p: float) -> Layer:
    return lambda x, weight, bias: _sum(two_products(x, weight, bias, p))


def _gaussian(p: float) -> Layer:
    return partial(functional.dropconnect_gaussian, p=p)


def _eager_gaussian(p: float) -> Layer:
    return partial(eager_gaussian, p=p)


def _sampled_elements(problem: Typical) -> int:
    return 1000 * prod(problem.shape[:2])


OP = BenchOp(
    "dropconnect_moments", _ours, {TWO_PRODUCTS: _two_products}, (1, 1024, 1024),
    sized=lambda elements: in_powers(elements, 1, 1, 1),
    shapes=(
        Typical((1, 1024, 1024)), Typical((1, 128, 1024)), Typical((8, 1024, 1024)),
        Typical((128, 1024, 1024)),
    ),
    dtypes=("float32", "float64"), operands=_input_weight_bias, output_shape=_rows, floor=F.linear,
    our_tensors=6, peer_tensors=6, quick=1 << 20,
)  # fmt: skip
GAUSSIAN = BenchOp(
    "dropconnect_gaussian", _gaussian, {EAGER: _eager_gaussian}, (32, 128, 1024),
    sized=lambda elements: in_powers(elements, 1, 1, 1),
    shapes=(Typical((1, 1024, 1024)), Typical((32, 128, 1024)), Typical((32, 1024, 1024))),
    dtypes=("float32", "float64"), operands=_input_weight_bias, output_shape=_rows, floor=F.linear,
    our_tensors=1, peer_tensors=4, elements=_sampled_elements, quick=1 << 16,
)  # fmt: skip
OPS = (OP, GAUSSIAN)
