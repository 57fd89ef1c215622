"""The lower bound that Wan et al. 2013 (Table 1) state for DropConnect on a GPU.

It is the dense layer, and reading the mask's bits once in each pass: what any implementation must
do that stores its masks and multiplies as fast as cuBLAS does.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class DenseReadingMasks:
    """`F.linear` whose forward, d_input and d_weight each read `connections` bits once more.

    The bits are allocated at the first call, and read by a sum of 64-bit words.
    """

    def __init__(self, connections: int) -> None:
        self._words = -(-connections // 64)
        self._bits: Tensor | None = None

    def __call__(self, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """input [N, I], weight [O, I], bias [O], all on one device; returns [N, O]."""
        if self._bits is None:
            size = (self._words,)
            self._bits = torch.randint(-(2**63), 2**63 - 1, size, device=input.device)
        output: Tensor = _DenseReading.apply(input, weight, bias, self._bits)
        return output


class _DenseReading(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, bits: Tensor) -> Tensor:
        ctx.save_for_backward(input, weight, bits)
        bits.sum()
        return F.linear(input, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        input, weight, bits = ctx.saved_tensors
        d_input = d_weight = d_bias = None
        if ctx.needs_input_grad[0]:
            bits.sum()
            d_input = grad @ weight
        if ctx.needs_input_grad[1]:
            bits.sum()
            d_weight = grad.T @ input
        if ctx.needs_input_grad[2]:
            d_bias = grad.sum(0)
        return d_input, d_weight, d_bias, None
