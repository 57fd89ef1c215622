"""DropConnect's convolutions, with a mask for each image or one for all."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fused_dropout._tools.baselines import naive_dropconnect_conv2d
from fused_dropout._tools.bench.dropconnect import NAIVE
from fused_dropout._tools.bench.op import BenchOp, Layer, Shape, Typical, in_powers
from fused_dropout.functional import dropconnect_conv2d

# A problem's shape: images, output channels, input channels, height, width, height and width of the
# kernel. One input channel stands for a depthwise convolution. The output has the input's size.


def _ours(p: float, mask: Any = "example") -> Layer:
    return lambda input, weight, bias: dropconnect_conv2d(
        input, weight, bias, padding="same", groups=_groups(input, weight), p=p, mask=mask
    )


def _naive(p: float, mask: Any = "example") -> Layer:
    return partial(naive_dropconnect_conv2d, p=p, shared=mask == "batch")


def _dense(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(input, weight, bias, padding="same", groups=_groups(input, weight))


def _groups(input: Tensor, weight: Tensor) -> int:
    return input.shape[1] // weight.shape[1]


def _operands(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    images, outs, ins, height, width, *kernel = shape
    groups = outs if ins == 1 else 1
    odd = [side - 1 + side % 2 for side in kernel]  # --quick halves long sides
    weight = torch.randn(outs, ins, *odd, generator=draw) / (ins * prod(odd)) ** 0.5
    input = torch.randn(images, ins * groups, height, width, generator=draw)
    return [input, weight, torch.randn(outs, generator=draw)]


def _output_shape(operands: list[Tensor]) -> Shape:
    input, weight, _ = operands
    return (input.shape[0], len(weight), *input.shape[2:])


def _elements(problem: Typical) -> int:
    """Of the masked weights, if all were made."""
    images, outs, ins, _, _, *kernel = problem.shape
    shared = dict(problem.options).get("mask") == "batch"
    return (1 if shared else images) * outs * ins * prod(kernel)


def _sized(elements: int) -> Shape:
    """So many products of an input and a weight."""
    return (*in_powers(elements, 1, 1, 1, 1, 1), 1, 1)


SHAPE = (32, 64, 64, 28, 28, 3, 3)
OP = BenchOp(
    "dropconnect_conv", _ours, {NAIVE: _naive}, SHAPE, _sized,
    shapes=(
        Typical((32, 16, 16, 32, 32, 3, 3)),
        Typical(SHAPE),
        Typical((32, 256, 256, 14, 14, 3, 3)),
        Typical((32, 512, 512, 7, 7, 3, 3)),
        Typical((1, 256, 256, 14, 14, 3, 3)),
        Typical((32, 256, 64, 28, 28, 1, 1)),
        Typical((32, 256, 1, 14, 14, 3, 3)),
        Typical(SHAPE, options=(("mask", "batch"),)),
    ),
    operands=_operands, output_shape=_output_shape, floor=_dense,
    our_tensors=1, peer_tensors=3, elements=_elements, quick=1 << 16,
)  # fmt: skip
OPS = (OP,)
