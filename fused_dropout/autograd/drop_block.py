"""DropBlock with a mask that has been drawn, and its gradient, which is the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_dropout import _ext


class DropBlock(torch.autograd.Function):
    """`input` where the mask keeps it, times the mask's factors, and 0 elsewhere.

    Forward saves the packed mask, 1 bit per element (or per position, where channels share it):
    drawing and dilating it again would take about as long as the gradient itself.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor, bits: Tensor, scale: Tensor, share_channels: bool, inplace: bool
    ) -> Tensor:
        ops = _ext.operators()
        if inplace:
            ops.drop_block_(input, bits, scale, share_channels)
            return input
        output: Tensor = ops.drop_block(input, bits, scale, share_channels)
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, bits, scale, share_channels, inplace = inputs
        if inplace:
            ctx.mark_dirty(input)
        ctx.save_for_backward(bits, scale)
        ctx.share_channels = share_channels

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        bits, scale = ctx.saved_tensors
        grad_input = DropBlock.apply(grad_output, bits, scale, ctx.share_channels, False)
        return grad_input, None, None, None, None
