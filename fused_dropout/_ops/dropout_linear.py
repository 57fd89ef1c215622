"""A linear layer whose input is dropped, and its gradients, which are the same products again.

input [.., in], weight [out, in], grad_output [.., out]. The settings are (p, scale). Under autocast
the input may have another dtype than the others; autograd converts its gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor

from fused_dropout._ops._differentiable import Differentiable, Settings, Shape, Tensors, total
from fused_dropout._ops._products import check_layer, product_rule


class DropoutLinear(Differentiable):
    """dropped(input) weight^T + bias. Tensors: input, weight, bias, rng_state.

    As F.linear, it saves each operand only for the other's gradient; the input as it came.
    """

    name = "dropout_linear"
    inputs = 3

    @staticmethod
    def fake(input: Tensor, weight: Tensor, bias: Tensor | None, *_: Any) -> Tensor:
        check_layer(input, weight, bias)
        return weight.new_empty((*input.shape[:-1], weight.shape[0]))

    @staticmethod
    def flops(input: Shape, weight: Shape, *_: Any, **__: Any) -> int:
        return 2 * prod(input) * weight[0]

    @staticmethod
    def save(tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        input, weight, _, rng_state = tensors
        return (input if needs[1] else None), (weight if needs[0] else None), rng_state

    @staticmethod
    def backward(saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any) -> Tensors:
        (grad,) = grads
        input, weight, rng_state = saved
        d_input = d_weight = d_bias = None
        if needs[0]:
            d_input = DInput.call((grad, weight, rng_state), settings)
        if needs[1]:
            d_weight = DWeight.call((grad, input, rng_state), settings)
        if needs[2]:
            d_bias = grad.sum(tuple(range(grad.dim() - 1)))
        return d_input, d_weight, d_bias

    @staticmethod
    def jvp(saved: Tensors, settings: Settings, *tangents: Tensor | None) -> Tensor:
        input, weight, rng_state = saved
        of_input, of_weight, of_bias = tangents
        terms = []
        if of_input is not None:
            terms.append(layer(of_input, weight, rng_state, settings))
        if of_weight is not None:
            terms.append(layer(input, of_weight, rng_state, settings))
        if of_bias is not None:
            assert input is not None
            terms.append(of_bias.expand(*input.shape[:-1], -1))
        return total(terms)


class DInput(Differentiable):
    """dropped(grad_output weight). Tensors: grad_output, weight, rng_state."""

    name = "dropout_linear_d_input"
    inputs = 2

    @staticmethod
    def fake(grad_output: Tensor, weight: Tensor, *_: Any) -> Tensor:
        return grad_output.new_empty((*grad_output.shape[:-1], weight.shape[1]))

    @staticmethod
    def flops(grad_output: Shape, weight: Shape, *_: Any, **__: Any) -> int:
        return 2 * prod(grad_output) * weight[1]

    @staticmethod
    def save(tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        grad_output, weight, rng_state = tensors
        return (grad_output if needs[1] else None), (weight if needs[0] else None), rng_state

    @staticmethod
    def backward(saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any) -> Tensors:
        (h,) = grads
        grad_output, weight, rng_state = saved
        to_grad_output = layer(h, weight, rng_state, settings) if needs[0] else None
        to_weight = DWeight.call((grad_output, h, rng_state), settings) if needs[1] else None
        return to_grad_output, to_weight

    @staticmethod
    def jvp(saved: Tensors, settings: Settings, *tangents: Tensor | None) -> Any:
        return product_rule(DInput, saved, settings, tangents)


class DWeight(Differentiable):
    """grad_output^T dropped(input). Tensors: grad_output, input, rng_state."""

    name = "dropout_linear_d_weight"
    inputs = 2

    @staticmethod
    def fake(grad_output: Tensor, input: Tensor, *_: Any) -> Tensor:
        return grad_output.new_empty((grad_output.shape[-1], input.shape[-1]))

    @staticmethod
    def flops(grad_output: Shape, input: Shape, *_: Any, **__: Any) -> int:
        return 2 * prod(input) * grad_output[-1]

    @staticmethod
    def save(tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        grad_output, input, rng_state = tensors
        return (grad_output if needs[1] else None), (input if needs[0] else None), rng_state

    @staticmethod
    def backward(saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any) -> Tensors:
        (h,) = grads
        grad_output, input, rng_state = saved
        to_grad_output = layer(input, h, rng_state, settings) if needs[0] else None
        to_input = DInput.call((grad_output, h, rng_state), settings) if needs[1] else None
        return to_grad_output, to_input

    @staticmethod
    def jvp(saved: Tensors, settings: Settings, *tangents: Tensor | None) -> Any:
        return product_rule(DWeight, saved, settings, tangents)


def layer(
    input: Tensor | None, weight: Tensor | None, rng_state: Tensor | None, settings: Settings
) -> Tensor:
    """The layer without a bias."""
    output: Tensor = DropoutLinear.call((input, weight, None, rng_state), settings)
    return output


OPERATORS = (DropoutLinear, DInput, DWeight)
