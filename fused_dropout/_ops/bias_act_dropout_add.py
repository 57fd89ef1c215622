"""The transformer epilogue, residual + dropout(activation(input + bias)), and its gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_dropout._ops._differentiable import NAMESPACE, Differentiable, Settings, Tensors, total


class EpilogueSettings(NamedTuple):
    """The settings of all three operators: kept elements are multiplied by ``scale``."""

    p: float
    activation: str
    scale: float


class BiasActDropoutAdd(Differentiable):
    """Tensors: input, bias, residual, rng_state.

    What the activation's derivative is taken at is saved: input and bias, which live on in the
    caller's graph, or neither for "none".
    """

    name = "bias_act_dropout_add"
    inputs = 3

    @staticmethod
    def fake(input: Tensor, *_: Any) -> Tensor:
        return torch.empty_like(input)

    @staticmethod
    def save(tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        input, bias, _, rng_state = tensors
        return (None, None, rng_state) if settings[1] == "none" else (input, bias, rng_state)

    @classmethod
    def save_all(cls, tensors: Tensors, settings: Settings) -> Tensors:
        """The input in any case: jvp takes its shape."""
        input, bias, _, rng_state = tensors
        return input, bias, rng_state

    @staticmethod
    def backward(saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any) -> Tensors:
        (grad,) = grads
        to_input, to_bias, to_residual = needs[:3]
        d_input = d_bias = None
        if to_bias:
            d_input, d_bias = DBoth.call((grad, *saved), settings)
        elif to_input:
            d_input = DInput.call((grad, *saved), settings)
        return (d_input if to_input else None), d_bias, (grad if to_residual else None)

    @staticmethod
    def jvp(saved: Tensors, settings: Settings, *tangents: Tensor | None) -> Tensor | None:
        of_input, of_bias, of_residual = tangents
        of_sum = _sum_of(of_input, of_bias, saved[0])
        if of_sum is None:
            return of_residual
        # What multiplies the gradient multiplies the tangent.
        tangent: Tensor = DInput.call((of_sum, *saved), settings)
        return tangent if of_residual is None else of_residual + tangent


class DInput(Differentiable):
    """e = s M grad_output activation'(z), with z = input + bias, the mask M and its scale s.

    Tensors: grad_output, input or None, bias or None, rng_state.
    """

    name = "bias_act_dropout_add_d_input"
    inputs = 3

    @staticmethod
    def fake(grad_output: Tensor, *_: Any) -> Tensor:
        return torch.empty_like(grad_output)

    @staticmethod
    def save(tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        return tensors

    @staticmethod
    def backward(saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any) -> Tensors:
        (of_e,) = grads
        to_grad_output, to_input, to_bias = needs[:3]
        d_grad_output = d_z = d_bias = None
        if to_grad_output:
            d_grad_output = DInput.call((of_e, *saved[1:]), settings)
        if to_input or to_bias:
            d_z = _curvature_term(of_e, saved, settings)
        if to_bias:
            assert d_z is not None
            d_bias = d_z.reshape(-1, d_z.shape[-1]).sum(0)
        return d_grad_output, (d_z if to_input else None), d_bias

    @staticmethod
    def jvp(saved: Tensors, settings: Settings, *tangents: Tensor | None) -> Tensor:
        of_grad_output, of_input, of_bias = tangents
        terms: list[Tensor] = []
        if of_grad_output is not None:
            terms.append(DInput.call((of_grad_output, *saved[1:]), settings))
        of_z = _sum_of(of_input, of_bias, saved[0])
        if of_z is not None:
            terms.append(_curvature_term(of_z, saved, settings))
        return total(terms)


class DBoth(Differentiable):
    """(e, the sum of its rows): the gradients of input and bias. Tensors as those of `DInput`."""

    name = "bias_act_dropout_add_d_both"
    inputs = 3

    @staticmethod
    def fake(grad_output: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return torch.empty_like(grad_output), grad_output.new_empty((grad_output.shape[-1],))

    @staticmethod
    def save(tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        return tensors

    @staticmethod
    def backward(saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any) -> Tensors:
        of_d_input, of_d_bias = grads
        of_e = _sum_of(of_d_input, of_d_bias, saved[0])
        return DInput.backward(saved, settings, needs, of_e)

    @staticmethod
    def jvp(saved: Tensors, settings: Settings, *tangents: Tensor | None) -> tuple[Tensor, Tensor]:
        of_e = DInput.jvp(saved, settings, *tangents)
        return of_e, of_e.reshape(-1, of_e.shape[-1]).sum(0)


def _sum_of(whole: Tensor | None, row: Tensor | None, like: Tensor | None) -> Tensor | None:
    """``whole + row``, of the shape of ``like``, of those that are given."""
    if row is None:
        return whole
    assert like is not None
    return row.expand_as(like) if whole is None else whole + row


def _curvature_term(change: Tensor, saved: Tensors, settings: Settings) -> Tensor:
    """s M grad_output activation''(z) change, in torch's operators and a mask of bytes."""
    grad_output, input, bias, rng_state = saved
    p, activation, scale = settings
    assert grad_output is not None and rng_state is not None
    if activation in ("none", "relu"):
        return torch.zeros_like(grad_output)
    assert input is not None
    z = input if bias is None else input + bias
    product = scale * change * grad_output * _second_derivative(z, activation)
    draw = getattr(torch.ops, NAMESPACE).mask
    # The mask is drawn where the random state is, which may be the CPU.
    kept = draw(rng_state.to(z.device), 1, z.numel(), p, 0, 16).view(z.shape)
    return torch.where(kept, product, 0)  # not a product with the mask: a dropped NaN must leave 0


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


OPERATORS = (BiasActDropoutAdd, DInput, DBoth)
