"""Gaussian noise of given mean and variance, and its gradient to the variance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_dropout import _ext


class GaussianNoise(torch.autograd.Function):
    """(mean + sqrt(variance + eps) * z, the rng_state that was drawn or None).

    `generator` counts only without an rng_state; None is the device's own. Forward saves the
    variance and 16 bytes of random state.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        mean: Tensor,
        variance: Tensor,
        generator: torch.Generator | None,
        rng_state: Tensor | None,
        eps: float,
    ) -> tuple[Tensor, Tensor | None]:
        op = _ext.operators().gaussian_noise
        if rng_state is not None:
            return op(mean, variance, rng_state, eps), None
        result, drawn = op.generator(mean, variance, generator, eps)
        return result, drawn

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor | None]
    ) -> None:
        _, variance, _, rng_state, eps = inputs
        drawn = outputs[1]
        if drawn is not None:
            ctx.mark_non_differentiable(drawn)
        ctx.save_for_backward(variance, rng_state if drawn is None else drawn)
        ctx.eps = eps

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: None) -> tuple[Tensor | None, ...]:
        variance, rng_state = ctx.saved_tensors
        to_mean, to_variance = ctx.needs_input_grad[:2]
        d_variance = None
        if to_variance:
            d_variance = GaussianNoiseDVariance.apply(grad_output, variance, rng_state, ctx.eps)
        return (grad_output if to_mean else None), d_variance, None, None, None


class GaussianNoiseDVariance(torch.autograd.Function):
    """grad_output * z / (2 sqrt(variance + eps)), which can be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad_output: Tensor, variance: Tensor, rng_state: Tensor, eps: float) -> Tensor:
        result: Tensor = _ext.operators().gaussian_noise_d_variance(
            grad_output, variance, rng_state, eps
        )
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad_output, variance, rng_state, eps = inputs
        ctx.save_for_backward(grad_output, variance, rng_state)
        ctx.eps = eps

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_output, variance, rng_state = ctx.saved_tensors
        to_grad_output, to_variance = ctx.needs_input_grad[:2]
        apply = GaussianNoiseDVariance.apply
        d_grad_output = d_variance = None
        if to_grad_output:
            d_grad_output = apply(grad, variance, rng_state, ctx.eps)
        if to_variance:  # of (variance + eps)^(-1/2)
            d_variance = apply(grad * grad_output, variance, rng_state, ctx.eps)
            d_variance = d_variance / (-2 * (variance + ctx.eps))
        return d_grad_output, d_variance, None, None
