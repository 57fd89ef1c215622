"""Dropout and its gradient, which is dropout with the same mask."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_dropout import _ext


class DropoutSettings(NamedTuple):
    """out = (kept ? scale * input + shift : fill) + residual."""

    p: float
    shared_dims: tuple[int, ...]
    scale: float
    shift: float = 0.0
    fill: float = 0.0


class Dropout(torch.autograd.Function):
    """(output, the rng_state that was drawn or None).

    `generator` counts only without an rng_state; None is the device's own. Forward saves nothing
    but the 16 bytes of random state.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        residual: Tensor | None,
        generator: torch.Generator | None,
        rng_state: Tensor | None,
        p: float,
        shared_dims: tuple[int, ...],
        scale: float,
        shift: float,
        fill: float,
        inplace: bool,
    ) -> tuple[Tensor, Tensor | None]:
        ops = _ext.operators()
        op = ops.dropout_ if inplace else ops.dropout
        settings = (p, shared_dims, scale, shift, fill)
        if rng_state is not None:
            result, drawn = op(input, residual, rng_state, *settings), None
        elif inplace:
            result, drawn = None, op.generator(input, residual, generator, *settings)
        else:
            result, drawn = op.generator(input, residual, generator, *settings)
        return (input if inplace else result), drawn

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor | None]
    ) -> None:
        input, _, _, rng_state, p, shared_dims, scale, _, _, inplace = inputs
        drawn = outputs[1]
        if drawn is not None:
            ctx.mark_non_differentiable(drawn)
        if inplace:
            ctx.mark_dirty(input)
        ctx.save_for_backward(rng_state if drawn is None else drawn)
        ctx.settings = DropoutSettings(p, shared_dims, scale)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: None) -> tuple[Tensor | None, ...]:
        (rng_state,) = ctx.saved_tensors
        to_input, to_residual = ctx.needs_input_grad[:2]
        grad_input = None
        if to_input:
            grad_input = Dropout.apply(grad_output, None, None, rng_state, *ctx.settings, False)[0]
        return (grad_input, grad_output if to_residual else None, *[None] * 8)
