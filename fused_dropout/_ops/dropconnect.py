"""DropConnect's products: the layer and its gradients, which are the same products again.

Matrices: input [rows, in], weight [out, in], grad_output [rows, out]. The settings of all but
`DBias` are (p, rows_per_mask, scale); mask_bits are the stored masks, or None to draw them again.

FLOPs are the multiply-adds of the dense layer: masks are not counted, as torch counts no dropout.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fused_dropout._ops._constant import Constant
from fused_dropout._ops._differentiable import (
    Differentiable,
    Dims,
    Settings,
    Shape,
    Tensors,
    item_by_item,
    total,
)
from fused_dropout._ops._products import check_layer, product_rule

STORED_OUTS_MULTIPLE = 8  # kStoredOutsMultiple in csrc/common/params.h


class DropConnectLinear(Differentiable):
    """scale ((M * weight) input + m * bias). Tensors: input, weight, bias, rng_state, mask_bits.

    As F.linear, it saves each operand only for the other's gradient.
    """

    name = "dropconnect_linear"
    inputs = 3

    @staticmethod
    def fake(input: Tensor, weight: Tensor, bias: Tensor | None, *_: Any) -> Tensor:
        check_layer(input, weight, bias)
        return input.new_empty((input.shape[0], weight.shape[0]))

    @staticmethod
    def flops(input: Shape, weight: Shape, *_: Any, **__: Any) -> int:
        return 2 * input[0] * weight[0] * weight[1]

    @staticmethod
    def save(tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        input, weight, _, rng_state, mask_bits = tensors
        return (input if needs[1] else None), (weight if needs[0] else None), rng_state, mask_bits

    @staticmethod
    def backward(saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any) -> Tensors:
        grad = grads[0]
        input, weight, *masks = saved
        d_input = d_weight = d_bias = None
        if needs[0] and needs[1]:
            d_input, d_weight = DBoth.call((grad, input, weight, *masks), settings)
        elif needs[0]:
            d_input = DInput.call((grad, weight, *masks), settings)
        elif needs[1]:
            d_weight = DWeight.call((grad, input, *masks), settings)
        if needs[2]:
            d_bias = DBias.call((grad, masks[0]), settings)
        return d_input, d_weight, d_bias

    @staticmethod
    def jvp(saved: Tensors, settings: Settings, *tangents: Tensor | None) -> Tensor:
        input, weight, *masks = saved
        of_input, of_weight, of_bias = tangents
        terms = []
        if of_input is not None:
            terms.append(layer(of_input, weight, masks, settings))
        if of_weight is not None:
            terms.append(layer(input, of_weight, masks, settings))
        if of_bias is not None:
            assert input is not None
            terms.append(masked_bias(input.shape[0], of_bias, masks, settings))
        return total(terms)

    @classmethod
    def vmap(cls, items: int, dims: Dims, tensors: Tensors, settings: Settings) -> Any:
        """Where only the input is a batch, the same row of every item has the same mask."""
        if dims[0] is None or any(dim is not None for dim in dims[1:]):
            return item_by_item(cls.call, items, dims, tensors, settings)
        p, rows_per_mask, scale = settings
        assert tensors[0] is not None
        rows = tensors[0].movedim(dims[0], 1)  # so that these rows follow each other
        flat = rows.reshape(-1, rows.shape[-1])
        results = cls.call((flat, *tensors[1:]), (p, rows_per_mask * items, scale))
        output, *bits = results if cls.kept_results else (results,)
        output = output.reshape(*rows.shape[:2], output.shape[-1])
        return ((output, *bits), (1, None)) if bits else (output, 1)


class DropConnectLinearWithBits(DropConnectLinear):
    """The same, and the masks, for backward to read. Tensors: input, weight, bias, rng_state."""

    name = "dropconnect_linear_with_bits"
    kept_results = 1

    @staticmethod
    def fake(input: Tensor, weight: Tensor, bias: Tensor | None, *others: Any) -> Any:
        rng_state, p, rows_per_mask, _ = others
        masks = (input.shape[0] + rows_per_mask - 1) // rows_per_mask
        bits = fake_mask_bits(weight, rng_state, masks, p)
        return DropConnectLinear.fake(input, weight, bias), bits

    @staticmethod
    def save(tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        return DropConnectLinear.save((*tensors, None), settings, needs)[:-1]

    @staticmethod
    def jvp(saved: Tensors, settings: Settings, *tangents: Tensor | None) -> Any:
        return DropConnectLinear.jvp(saved, settings, *tangents), None


class DInput(Differentiable):
    """Tensors: grad_output, weight, rng_state, mask_bits."""

    name = "dropconnect_linear_d_input"
    inputs = 2

    @staticmethod
    def fake(grad_output: Tensor, weight: Tensor, *_: Any) -> Tensor:
        return grad_output.new_empty((grad_output.shape[0], weight.shape[1]))

    @staticmethod
    def flops(grad_output: Shape, weight: Shape, *_: Any, **__: Any) -> int:
        return 2 * grad_output[0] * grad_output[1] * weight[1]

    @staticmethod
    def save(tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        grad_output, weight, *masks = tensors
        return (grad_output if needs[1] else None), (weight if needs[0] else None), *masks

    @staticmethod
    def backward(saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any) -> Tensors:
        (h,) = grads
        grad_output, weight, *masks = saved
        to_grad_output = layer(h, weight, masks, settings) if needs[0] else None
        to_weight = DWeight.call((grad_output, h, *masks), settings) if needs[1] else None
        return to_grad_output, to_weight

    @staticmethod
    def jvp(saved: Tensors, settings: Settings, *tangents: Tensor | None) -> Any:
        return product_rule(DInput, saved, settings, tangents)


class DWeight(Differentiable):
    """Tensors: grad_output, input, rng_state, mask_bits."""

    name = "dropconnect_linear_d_weight"
    inputs = 2

    @staticmethod
    def fake(grad_output: Tensor, input: Tensor, *_: Any) -> Tensor:
        return grad_output.new_empty((grad_output.shape[1], input.shape[1]))

    @staticmethod
    def flops(grad_output: Shape, input: Shape, *_: Any, **__: Any) -> int:
        return 2 * grad_output[0] * grad_output[1] * input[1]

    @staticmethod
    def save(tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        grad_output, input, *masks = tensors
        return (grad_output if needs[1] else None), (input if needs[0] else None), *masks

    @staticmethod
    def backward(saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any) -> Tensors:
        (h,) = grads
        grad_output, input, *masks = saved
        to_grad_output = layer(input, h, masks, settings) if needs[0] else None
        to_input = DInput.call((grad_output, h, *masks), settings) if needs[1] else None
        return to_grad_output, to_input

    @staticmethod
    def jvp(saved: Tensors, settings: Settings, *tangents: Tensor | None) -> Any:
        return product_rule(DWeight, saved, settings, tangents)


class DBoth(Differentiable):
    """(d_input, d_weight). Tensors: grad_output, input, weight, rng_state, mask_bits.

    On the CPU, one pass draws (or reads) every mask once for both.
    """

    name = "dropconnect_linear_d_both"
    inputs = 3

    @staticmethod
    def fake(grad_output: Tensor, input: Tensor, weight: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return DInput.fake(grad_output, weight), DWeight.fake(grad_output, input)

    @staticmethod
    def flops(grad_output: Shape, input: Shape, weight: Shape, *_: Any, **__: Any) -> int:
        return DInput.flops(grad_output, weight) + DWeight.flops(grad_output, input)

    @staticmethod
    def save(tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        return tensors

    @staticmethod
    def backward(saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any) -> Tensors:
        of_d_input, of_d_weight = grads
        grad_output, input, weight, *masks = saved
        to_grad_output = to_input = to_weight = None
        if needs[0]:
            terms = []
            if of_d_input is not None:
                terms.append(layer(of_d_input, weight, masks, settings))
            if of_d_weight is not None:
                terms.append(layer(input, of_d_weight, masks, settings))
            to_grad_output = total(terms)
        if needs[1] and of_d_weight is not None:
            to_input = DInput.call((grad_output, of_d_weight, *masks), settings)
        if needs[2] and of_d_input is not None:
            to_weight = DWeight.call((grad_output, of_d_input, *masks), settings)
        return to_grad_output, to_input, to_weight

    @staticmethod
    def jvp(saved: Tensors, settings: Settings, *tangents: Tensor | None) -> tuple[Tensor, Tensor]:
        grad_output, input, weight, *masks = saved
        of_grad_output, of_input, of_weight = tangents
        assert input is not None and weight is not None
        d_input = product_rule(
            DInput, (grad_output, weight, *masks), settings, (of_grad_output, of_weight)
        )
        d_weight = product_rule(
            DWeight, (grad_output, input, *masks), settings, (of_grad_output, of_input)
        )
        return (
            torch.zeros_like(input) if d_input is None else d_input,
            torch.zeros_like(weight) if d_weight is None else d_weight,
        )


class DBias(Differentiable):
    """The gradient of the bias. Tensors: grad_output, rng_state."""

    name = "dropconnect_linear_d_bias"
    inputs = 1
    linear = True

    @staticmethod
    def fake(grad_output: Tensor, *_: Any) -> Tensor:
        return grad_output.new_empty((grad_output.shape[1],))

    @staticmethod
    def save(tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        return tensors

    @staticmethod
    def backward(saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any) -> Tensors:
        grad_output, rng_state = saved
        assert grad_output is not None
        return (masked_bias(grad_output.shape[0], grads[0], [rng_state, None], settings),)

    @staticmethod
    def jvp(saved: Tensors, settings: Settings, *tangents: Tensor | None) -> Tensor:
        tangent: Tensor = DBias.call((tangents[0], saved[1]), settings)
        return tangent


def layer(
    input: Tensor | None, weight: Tensor | None, masks: Sequence[Tensor | None], settings: Settings
) -> Tensor:
    """The layer without a bias."""
    output: Tensor = DropConnectLinear.call((input, weight, None, *masks), settings)
    return output


def masked_bias(
    rows: int, bias: Tensor, masks: Sequence[Tensor | None], settings: Settings
) -> Tensor:
    """The layer of a bias alone: one without input features."""
    input, weight = bias.new_zeros(rows, 0), bias.new_zeros(bias.shape[0], 0)
    output: Tensor = DropConnectLinear.call((input, weight, bias, masks[0], None), settings)
    return output


def fake_mask_bits(
    weight: Tensor, rng_state: Tensor, masks: int, p: float, first_mask: int = 0
) -> Tensor:
    """Results of dropconnect_mask_bits."""
    return weight.new_empty(stored_shape(masks, *weight.shape), dtype=torch.int32)


def stored_shape(masks: int, out_features: int, in_features: int) -> tuple[int, int, int, int]:
    """Stored masks, int32: groups of 128 columns, masks, outputs rounded up, words of a group."""
    outs = (out_features + STORED_OUTS_MULTIPLE - 1) // STORED_OUTS_MULTIPLE * STORED_OUTS_MULTIPLE
    return (in_features + 127) // 128, masks, outs, 4


OPERATORS = (
    DropConnectLinear,
    DropConnectLinearWithBits,
    DInput,
    DWeight,
    DBoth,
    DBias,
    Constant("dropconnect_mask_bits", fake_mask_bits),
)
