"""Mean and variance of DropConnect's pre-activations, and their derivatives in torch's products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fused_dropout._ops._differentiable import (
    Differentiable,
    Dims,
    Settings,
    Shape,
    Tensors,
    item_by_item,
    total,
)
from fused_dropout._ops._products import check_layer


class DropConnectMoments(Differentiable):
    """(mean, variance), as csrc/ops/dropconnect_moments.h defines them.

    Tensors: input [rows, in], weight [out, in], bias. Settings: mean_scale, variance_scale,
    mask_bias. Derivatives are computed in the dtype of the results, float32 or float64, and rounded
    once; of dense copies, since products of other strides have other last bits.
    """

    name = "dropconnect_moments"
    inputs = 3

    @staticmethod
    def fake(input: Tensor, weight: Tensor, bias: Tensor | None, *_: Any) -> tuple[Tensor, Tensor]:
        check_layer(input, weight, bias)
        mean = input.new_empty((input.shape[0], weight.shape[0]), dtype=_wide(input.dtype))
        return mean, torch.empty_like(mean)

    @staticmethod
    def flops(input: Shape, weight: Shape, *_: Any, **__: Any) -> int:
        return 4 * input[0] * weight[0] * weight[1]

    @staticmethod
    def save(tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        return tensors

    @staticmethod
    def backward(saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any) -> Tensors:
        input, weight, bias = saved
        mean_scale, variance_scale, mask_bias = settings
        of_mean, of_variance = grads
        assert input is not None and weight is not None
        x, w = _dense(input), _dense(weight)
        to_input: list[Tensor] = []
        to_weight: list[Tensor] = []
        to_bias: list[Tensor] = []
        if of_mean is not None:
            grad = of_mean.contiguous() * mean_scale
            if needs[0]:
                to_input.append(grad @ w)
            if needs[1]:
                to_weight.append(grad.mT @ x)
            if needs[2]:
                to_bias.append((grad if mask_bias else of_mean).sum(0))
        if of_variance is not None:
            grad = of_variance.contiguous() * (2 * variance_scale)
            if needs[0]:
                to_input.append(grad @ w.square() * x)
            if needs[1]:
                to_weight.append(grad.mT @ x.square() * w)
            if needs[2] and bias is not None and mask_bias:
                to_bias.append(grad.sum(0) * bias)
        return _summed(to_input, input), _summed(to_weight, weight), _summed(to_bias, bias)

    @staticmethod
    def jvp(saved: Tensors, settings: Settings, *tangents: Tensor | None) -> tuple[Tensor, Tensor]:
        input, weight, bias = saved
        mean_scale, variance_scale, mask_bias = settings
        assert input is not None and weight is not None
        x, w = _dense(input), _dense(weight)
        of_input, of_weight, of_bias = (
            None if tangent is None else _dense(tangent) for tangent in tangents
        )
        zeros = x.new_zeros(x.shape[0], w.shape[0])
        means, variances = [zeros], [zeros]
        if of_input is not None:
            means.append(of_input @ w.mT)
            variances.append(x * of_input @ w.square().mT)
        if of_weight is not None:
            means.append(x @ of_weight.mT)
            variances.append(x.square() @ (w * of_weight).mT)
        if of_bias is not None and mask_bias:
            assert bias is not None
            means.append(of_bias)
            variances.append(bias * of_bias)
        mean = total(means) * mean_scale
        if of_bias is not None and not mask_bias:
            mean = mean + of_bias
        return mean, total(variances) * (2 * variance_scale)

    @classmethod
    def vmap(cls, items: int, dims: Dims, tensors: Tensors, settings: Settings) -> Any:
        """Where only the input is a batch, its items are further rows."""
        if dims[0] is None or any(dim is not None for dim in dims[1:]):
            return item_by_item(cls.call, items, dims, tensors, settings)
        assert tensors[0] is not None
        rows = tensors[0].movedim(dims[0], 0)
        moments = cls.call((rows.flatten(0, 1), *tensors[1:]), settings)
        return tuple(moment.unflatten(0, rows.shape[:2]) for moment in moments), (0, 0)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What sums are kept in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _dense(tensor: Tensor) -> Tensor:
    return tensor.to(_wide(tensor.dtype)).contiguous()


def _summed(terms: Sequence[Tensor], like: Tensor | None) -> Tensor | None:
    """The sum of a gradient's terms in the operand's dtype; None without any."""
    if like is None or not terms:
        return None
    return total(terms).to(like.dtype)


OPERATORS = (DropConnectMoments,)
