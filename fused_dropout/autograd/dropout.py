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
    ) -> tuple[Tensor, Tensor | None]:
        op, settings = _ext.operators().dropout, (p, shared_dims, scale, shift, fill)
        if rng_state is not None:
            return op(input, residual, rng_state, *settings), None
        output, drawn = op.generator(input, residual, generator, *settings)
        return output, drawn

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor | None]
    ) -> None:
        rng_state, p, shared_dims, scale = inputs[3:7]
        drawn = outputs[1]
        if drawn is not None:
            ctx.mark_non_differentiable(drawn)
            rng_state = drawn
        ctx.save_for_backward(rng_state)
        ctx.settings = DropoutSettings(p, shared_dims, scale)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: None) -> tuple[Tensor | None, ...]:
        return (*_gradients(ctx, grad_output), *[None] * 7)


class DropoutWithTangents(Dropout):
    """The same with forward-mode derivatives, which torch.compile refuses to trace."""

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor | None]
    ) -> None:
        Dropout.setup_context(ctx, inputs, outputs)
        ctx.save_for_forward(inputs[3] if outputs[1] is None else outputs[1])

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, residual_tangent: Tensor | None, *_: None) -> Any:
        (rng_state,) = ctx.saved_tensors
        result = Dropout.apply(tangent, residual_tangent, None, rng_state, *ctx.settings)[0]
        return result, None


class DropoutInPlace(torch.autograd.Function):
    """`input`, which now holds the result.

    For views of other tensors autograd wants a Function with a single result, and so the drawn
    rng_state cannot be one; torch's transforms (vmap, grad) take no Function of this form.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        residual: Tensor | None,
        generator: torch.Generator | None,
        rng_state: Tensor | None,
        p: float,
        shared_dims: tuple[int, ...],
        scale: float,
        shift: float,
        fill: float,
    ) -> Tensor:
        op, settings = _ext.operators().dropout_, (p, shared_dims, scale, shift, fill)
        if rng_state is not None:
            op(input, residual, rng_state, *settings)
        else:
            rng_state = op.generator(input, residual, generator, *settings)
        ctx.mark_dirty(input)
        ctx.save_for_backward(rng_state)
        ctx.settings = DropoutSettings(p, shared_dims, scale)
        return input

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return (*_gradients(ctx, grad_output), *[None] * 7)


def _gradients(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Those of input and residual."""
    (rng_state,) = ctx.saved_tensors
    to_input, to_residual = ctx.needs_input_grad[:2]
    grad_input = None
    if to_input:
        grad_input = Dropout.apply(grad_output, None, None, rng_state, *ctx.settings)[0]
    return grad_input, grad_output if to_residual else None
