"""Gaussian dropout and its gradient, which is Gaussian dropout with the same noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_dropout import _ext


class GaussianDropout(torch.autograd.Function):
    """(input * (1 + sigma * z), the rng_state that was drawn or None).

    `generator` counts only without an rng_state; None is the device's own. Forward saves nothing
    but the 16 bytes of random state.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        generator: torch.Generator | None,
        rng_state: Tensor | None,
        sigma: float,
        inplace: bool,
    ) -> tuple[Tensor, Tensor | None]:
        ops = _ext.operators()
        op = ops.gaussian_dropout_ if inplace else ops.gaussian_dropout
        if rng_state is not None:
            result, drawn = op(input, rng_state, sigma), None
        elif inplace:
            result, drawn = None, op.generator(input, generator, sigma)
        else:
            result, drawn = op.generator(input, generator, sigma)
        return (input if inplace else result), drawn

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor | None]
    ) -> None:
        input, _, rng_state, sigma, inplace = inputs
        drawn = outputs[1]
        if drawn is not None:
            ctx.mark_non_differentiable(drawn)
        if inplace:
            ctx.mark_dirty(input)
        ctx.save_for_backward(rng_state if drawn is None else drawn)
        ctx.sigma = sigma

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: None) -> tuple[Tensor | None, ...]:
        (rng_state,) = ctx.saved_tensors
        grad_input = GaussianDropout.apply(grad_output, None, rng_state, ctx.sigma, False)[0]
        return grad_input, None, None, None, None
