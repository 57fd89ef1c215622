"""Concrete dropout, its gradients to the input and the logit of p, and theirs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_dropout import _ext


class ConcreteDropout(torch.autograd.Function):
    """(input * (1 - z) / (1 - p), the rng_state that was drawn or None).

    `logit_p` has one element of the dtype that is computed in. `generator` counts only without an
    rng_state; None is the device's own. Forward saves logit_p, 16 bytes of random state, and the
    input where logit_p needs its gradient.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        logit_p: Tensor,
        generator: torch.Generator | None,
        rng_state: Tensor | None,
        temperature: float,
    ) -> tuple[Tensor, Tensor | None]:
        op = _ext.operators().concrete_dropout
        if rng_state is not None:
            return op(input, logit_p, rng_state, temperature), None
        result, drawn = op.generator(input, logit_p, generator, temperature)
        return result, drawn

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor | None]
    ) -> None:
        input, logit_p, _, rng_state, temperature = inputs
        drawn = outputs[1]
        if drawn is not None:
            ctx.mark_non_differentiable(drawn)
        saved = input if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(saved, logit_p, rng_state if drawn is None else drawn)
        ctx.temperature = temperature

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: None) -> tuple[Tensor | None, ...]:
        input, logit_p, rng_state = ctx.saved_tensors
        settings = rng_state, ctx.temperature
        if input is None:
            d_input = ConcreteDropout.apply(grad_output, logit_p, None, *settings)[0]
            return d_input, None, None, None, None
        d_input, d_logit = ConcreteDropoutGradients.apply(grad_output, input, logit_p, *settings)
        return d_input, d_logit, None, None, None


class ConcreteDropoutGradients(torch.autograd.Function):
    """(gradient of the input, gradient of logit_p), which can be differentiated again.

    With a = (1 - z) / (1 - p) and b = p - z / t: d a / d logit_p = a b, so the two are
    grad_output a and the sum of grad_output input a b.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad_output: Tensor, input: Tensor, logit_p: Tensor, rng_state: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        d_input, d_logit = _ext.operators().concrete_dropout_backward(
            grad_output, input, logit_p, rng_state, temperature
        )
        return d_input, d_logit

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> None:
        *tensors, ctx.temperature = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, h_input: Tensor, h_logit: Tensor) -> tuple[Tensor | None, ...]:
        """Plain torch on the uniforms drawn again: rarely asked for, so it need not be fast."""
        grad_output, input, logit_p, rng_state = ctx.saved_tensors
        dtype = logit_p.dtype
        g, x, hx = (tensor.to(dtype) for tensor in (grad_output, input, h_input))
        logit, h = logit_p.reshape(()), h_logit.reshape(())
        u = _ext.operators().uniform_noise(rng_state, input.shape, dtype)
        z = torch.sigmoid((logit + torch.logit(u)) / ctx.temperature)
        p = torch.sigmoid(logit)
        a = (1 - z) / (1 - p)
        b = p - z / ctx.temperature
        slope = p * (1 - p) - z * (1 - z) / ctx.temperature**2  # d b / d logit_p
        # Of the sum of hx g a and of h times the sum of g x a b.
        d_grad_output = a * (hx + h * x * b)
        d_input = h * g * a * b
        d_logit = (a * g * (hx * b + h * x * (b * b + slope))).sum()
        return (
            d_grad_output.to(grad_output.dtype),
            d_input.to(input.dtype),
            d_logit.reshape(logit_p.shape),
            None,
            None,
        )
