"""DropConnect's convolutions, in one to three dimensions: the layer and its gradients.

input [examples, in, *size], weight [out, in / groups, *kernel], grad_output [examples, out,
*out_size]. The settings are those of `_convolutions.Settings`, and of a gradient also the size, or
the kernel's size, of its result. They are products as those of `dropconnect.py`, of the same masks,
so that derivatives are the same operators again.

FLOPs are the multiply-adds of the dense convolution: masks are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fused_dropout._ops import _convolutions as convolutions
from fused_dropout._ops._convolutions import memory_format, problem_of
from fused_dropout._ops._differentiable import (
    Differentiable,
    Dims,
    Settings,
    Shape,
    Tensors,
    item_by_item,
    total,
)
from fused_dropout._ops._products import product_rule
from fused_dropout._ops.dropconnect import DBias, masked_bias

_SETTINGS = (
    "float p, SymInt examples_per_mask, float scale, SymInt[] stride, SymInt[] padding,"
    " SymInt[] dilation, SymInt groups"
)


class DropConnectConv(Differentiable):
    """scale (conv(input, M * weight) + m * bias). Tensors: input, weight, bias, rng_state.

    As torch's convolution, it saves input and weight.
    """

    name = "dropconnect_conv"
    inputs = 3
    schema = f"(Tensor input, Tensor weight, Tensor? bias, Tensor rng_state, {_SETTINGS}) -> Tensor"
    compute = staticmethod(convolutions.forward)

    @staticmethod
    def fake(
        input: Tensor, weight: Tensor, bias: Tensor | None, rng_state: Tensor, *settings: Any
    ) -> Tensor:
        convolutions.check_alike(input, weight, bias)
        shape = problem_of(input.shape, weight.shape, _typed(settings)).output
        return _empty(input, shape, memory_format(input, weight))

    @staticmethod
    def flops(input: Shape, weight: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
        return _flops(out_shape, weight)

    @staticmethod
    def save(tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        input, weight, _, rng_state = tensors
        return input, weight, rng_state

    @staticmethod
    def backward(saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any) -> Tensors:
        grad = grads[0]
        input, weight, rng_state = saved
        assert input is not None and weight is not None
        d_input = d_weight = d_bias = None
        if needs[0]:
            d_input = DInput.call((grad, weight, rng_state), (*settings, input.shape[2:]))
        if needs[1]:
            d_weight = DWeight.call((grad, input, rng_state), (*settings, weight.shape[2:]))
        if needs[2]:
            d_bias = _d_bias(grad, rng_state, settings)
        return d_input, d_weight, d_bias

    @staticmethod
    def jvp(saved: Tensors, settings: Settings, *tangents: Tensor | None) -> Tensor:
        input, weight, rng_state = saved
        assert input is not None and weight is not None
        of_input, of_weight, of_bias = tangents
        terms = []
        if of_input is not None:
            terms.append(_convolved(of_input, weight, rng_state, settings))
        if of_weight is not None:
            terms.append(_convolved(input, of_weight, rng_state, settings))
        if of_bias is not None:
            shape = problem_of(input.shape, weight.shape, _typed(settings)).output
            rows = masked_bias(len(input), of_bias, (rng_state, None), settings[:3])
            maps = rows.reshape(*shape[:2], *[1] * (len(shape) - 2)).expand(shape)
            terms.append(maps.clone(memory_format=memory_format(input, weight)))
        return total(terms)

    @classmethod
    def vmap(cls, items: int, dims: Dims, tensors: Tensors, settings: Settings) -> Any:
        """Where only the input is a batch, the same example of every item has the same mask."""
        if dims[0] is None or any(dim is not None for dim in dims[1:]):
            return item_by_item(cls.call, items, dims, tensors, settings)
        assert tensors[0] is not None
        examples = tensors[0].movedim(dims[0], 1)  # so that these follow each other
        p, examples_per_mask, *others = settings
        output = cls.call(
            (examples.flatten(0, 1), *tensors[1:]), (p, examples_per_mask * items, *others)
        )
        return output.reshape(*examples.shape[:2], *output.shape[1:]), 1


class DInput(Differentiable):
    """Tensors: grad_output, weight, rng_state."""

    name = "dropconnect_conv_d_input"
    inputs = 2
    schema = (
        f"(Tensor grad_output, Tensor weight, Tensor rng_state, {_SETTINGS}, SymInt[] size)"
        " -> Tensor"
    )
    compute = staticmethod(convolutions.d_input)

    @staticmethod
    def fake(grad_output: Tensor, weight: Tensor, rng_state: Tensor, *settings: Any) -> Tensor:
        convolutions.check_alike(grad_output, weight)
        problem = convolutions.problem_of_d_input(grad_output, weight, settings)
        return _empty(grad_output, problem.input, memory_format(grad_output, weight))

    @staticmethod
    def flops(grad_output: Shape, weight: Shape, *_: Any, **__: Any) -> int:
        return _flops(grad_output, weight)

    @staticmethod
    def save(tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        return tensors

    @staticmethod
    def backward(saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any) -> Tensors:
        (h,) = grads
        grad_output, weight, rng_state = saved
        assert weight is not None
        layer = settings[:-1]
        to_grad_output = _convolved(h, weight, rng_state, layer) if needs[0] else None
        to_weight = None
        if needs[1]:
            to_weight = DWeight.call((grad_output, h, rng_state), (*layer, weight.shape[2:]))
        return to_grad_output, to_weight

    @staticmethod
    def jvp(saved: Tensors, settings: Settings, *tangents: Tensor | None) -> Any:
        return product_rule(DInput, saved, settings, tangents)


class DWeight(Differentiable):
    """Tensors: grad_output, input, rng_state."""

    name = "dropconnect_conv_d_weight"
    inputs = 2
    schema = (
        f"(Tensor grad_output, Tensor input, Tensor rng_state, {_SETTINGS},"
        " SymInt[] kernel_size) -> Tensor"
    )
    compute = staticmethod(convolutions.d_weight)

    @staticmethod
    def fake(grad_output: Tensor, input: Tensor, rng_state: Tensor, *settings: Any) -> Tensor:
        convolutions.check_alike(grad_output, input)
        problem = convolutions.problem_of_d_weight(grad_output, input, settings)
        return _empty(input, problem.weight, torch.contiguous_format)

    @staticmethod
    def flops(grad_output: Shape, input: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
        return _flops(grad_output, out_shape)

    @staticmethod
    def save(tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        return tensors

    @staticmethod
    def backward(saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any) -> Tensors:
        (h,) = grads
        grad_output, input, rng_state = saved
        assert input is not None
        layer = settings[:-1]
        to_grad_output = _convolved(input, h, rng_state, layer) if needs[0] else None
        to_input = None
        if needs[1]:
            to_input = DInput.call((grad_output, h, rng_state), (*layer, input.shape[2:]))
        return to_grad_output, to_input

    @staticmethod
    def jvp(saved: Tensors, settings: Settings, *tangents: Tensor | None) -> Any:
        return product_rule(DWeight, saved, settings, tangents)


def _convolved(
    input: Tensor, weight: Tensor, rng_state: Tensor | None, settings: Settings
) -> Tensor:
    """The layer without a bias."""
    output: Tensor = DropConnectConv.call((input, weight, None, rng_state), settings)
    return output


def _d_bias(grad: Tensor, rng_state: Tensor | None, settings: Settings) -> Tensor:
    """Every position of an example has the same masked bias."""
    dtype = torch.float32 if grad.dtype in convolutions.HALVES else grad.dtype
    sums = grad.sum(tuple(range(2, grad.dim())), dtype=dtype)
    found: Tensor = DBias.call((sums, rng_state), settings[:3])
    return found.to(grad.dtype)


def _typed(settings: Sequence[Any]) -> convolutions.Settings:
    return convolutions.Settings(*settings)


def _empty(like: Tensor, shape: Sequence[int], form: torch.memory_format) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=form)


def _flops(output: Shape, weight: Shape) -> int:
    """Of the dense convolution with such an output, and of both of its gradients."""
    return 2 * math.prod(output) * math.prod(weight[1:])


OPERATORS = (DropConnectConv, DInput, DWeight)
