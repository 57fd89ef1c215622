"""The transformer epilogue and its gradients."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_dropout import _ext


class EpilogueSettings(NamedTuple):
    """output = residual + dropout(activation(input + bias)), kept elements times ``scale``."""

    p: float
    activation: str
    scale: float


class BiasActDropoutAdd(torch.autograd.Function):
    """(output, the rng_state that was drawn or None).

    `generator` counts only without an rng_state; None is the device's own. Forward saves the 16
    bytes of random state, and what the activation's derivative is taken at: input and bias, which
    live on in the caller's graph, or neither for "none".
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        generator: torch.Generator | None,
        rng_state: Tensor | None,
        p: float,
        activation: str,
        scale: float,
    ) -> tuple[Tensor, Tensor | None]:
        op = _ext.operators().bias_act_dropout_add
        if rng_state is not None:
            return op(input, bias, residual, rng_state, p, activation, scale), None
        output, drawn = op.generator(input, bias, residual, generator, p, activation, scale)
        return output, drawn

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor | None]
    ) -> None:
        input, bias, _, _, rng_state, *settings = inputs
        drawn = outputs[1]
        if drawn is not None:
            ctx.mark_non_differentiable(drawn)
        ctx.settings = EpilogueSettings(*settings)
        linear = ctx.settings.activation == "none"
        operands = (None, None) if linear else (input, bias)
        ctx.save_for_backward(*operands, rng_state if drawn is None else drawn)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: None) -> tuple[Tensor | None, ...]:
        to_input, to_bias, to_residual = ctx.needs_input_grad[:3]
        d_input = d_bias = None
        if to_input or to_bias:
            d_input, d_bias = EpilogueGradients.apply(
                grad_output, *ctx.saved_tensors, *ctx.settings, to_bias
            )
        d_residual = grad_output if to_residual else None
        return (d_input if to_input else None, d_bias, d_residual, *[None] * 5)


class EpilogueGradients(torch.autograd.Function):
    """(d_input, d_bias or None) of the operator above, differentiable again.

    With z = input + bias, the mask M and its scale s, both are made of
    ``e = s M grad_output activation'(z)``: d_input is e and d_bias the sum of its rows.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad_output: Tensor,
        input: Tensor | None,
        bias: Tensor | None,
        rng_state: Tensor,
        p: float,
        activation: str,
        scale: float,
        to_bias: bool,
    ) -> tuple[Tensor, Tensor | None]:
        ops = _ext.operators()
        arguments = (grad_output, input, bias, rng_state, p, activation, scale)
        if to_bias:
            d_input, d_bias = ops.bias_act_dropout_add_d_both(*arguments)
            return d_input, d_bias
        return ops.bias_act_dropout_add_d_input(*arguments), None

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor | None]
    ) -> None:
        grad_output, input, bias, rng_state, *settings, _ = inputs
        ctx.save_for_backward(grad_output, input, bias, rng_state)
        ctx.settings = EpilogueSettings(*settings)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, of_d_input: Tensor | None, of_d_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        grad_output, input, bias, rng_state = ctx.saved_tensors
        to_grad_output, to_input, to_bias = ctx.needs_input_grad[:3]
        if of_d_input is None and of_d_bias is None:
            return (None,) * 8
        of_e = _sum_of(of_d_input, of_d_bias, grad_output)
        d_grad_output = d_input = d_bias = None
        if to_grad_output:
            d_grad_output, _ = EpilogueGradients.apply(
                of_e, input, bias, rng_state, *ctx.settings, False
            )
        if (to_input or to_bias) and ctx.settings.activation not in ("none", "relu"):
            z = input if bias is None else input + bias
            curvature = _second_derivative(z, ctx.settings.activation)
            product = ctx.settings.scale * of_e * grad_output * curvature
            # where, not a product with the mask: a dropped NaN must leave 0.
            d_input = torch.where(_mask_of(z, rng_state, ctx.settings.p), product, 0)
            if to_bias:
                d_bias = d_input.reshape(-1, d_input.shape[-1]).sum(0)
        return (d_grad_output, d_input if to_input else None, d_bias, *[None] * 5)


def _sum_of(of_d_input: Tensor | None, of_d_bias: Tensor | None, like: Tensor) -> Tensor:
    """The gradient of e, from those of d_input and of d_bias; at least one is given."""
    if of_d_bias is None:
        assert of_d_input is not None
        return of_d_input
    return of_d_bias.expand_as(like) if of_d_input is None else of_d_input + of_d_bias


def _mask_of(tensor: Tensor, rng_state: Tensor, p: float) -> Tensor:
    """The mask that the kernels draw for ``tensor``, as bools."""
    kept: Tensor = _ext.operators().mask(rng_state, 1, tensor.numel(), p, 0, 16)
    return kept.view(tensor.shape)


def _second_derivative(z: Tensor, activation: str) -> Tensor:
    """activation''(z), in torch's operators, which can be differentiated on."""
    if activation == "gelu":
        density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
        return density * (2 - z * z)
    # z sigmoid(y) with y' = slope and y'' = curvature.
    if activation == "silu":
        y, slope, curvature = z, torch.ones_like(z), torch.zeros_like(z)
    else:
        scale, cubic = 2 * math.sqrt(2 / math.pi), 0.044715
        y = scale * (z + cubic * z**3)
        slope, curvature = scale * (1 + 3 * cubic * z * z), 6 * scale * cubic * z
    s = torch.sigmoid(y)
    s1 = s * (1 - s)
    s2 = s1 * (1 - 2 * s)
    return 2 * s1 * slope + z * (s2 * slope * slope + s1 * curvature)
