"""Masked weights [masks, out, in], and the sum of such a stack: each is the other's gradient.

The settings of both are (p, masks, scale); mask_bits are the stored masks, or None to draw them
again. Nothing but masks is saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fused_dropout._ops._differentiable import Differentiable, Settings, Tensors


class MaskWeight(Differentiable):
    """scale M[k] weight for each mask k. Tensors: weight [out, in], rng_state, mask_bits."""

    name = "mask_weight"
    inputs = 1
    linear = True

    @staticmethod
    def fake(
        weight: Tensor, rng_state: Tensor, mask_bits: Any, p: float, masks: int, *_: Any
    ) -> Tensor:
        return weight.new_empty((masks, *weight.shape))

    @staticmethod
    def save(tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        return tensors[1:]

    @staticmethod
    def backward(saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any) -> Tensors:
        return (MaskWeightSum.call((grads[0], *saved), settings),)

    @staticmethod
    def jvp(saved: Tensors, settings: Settings, *tangents: Tensor | None) -> Tensor:
        tangent: Tensor = MaskWeight.call((*tangents, *saved), settings)
        return tangent


class MaskWeightSum(Differentiable):
    """scale times the sum of M[k] stack[k]. Tensors: stack, rng_state, mask_bits."""

    name = "mask_weight_sum"
    inputs = 1
    linear = True

    @staticmethod
    def fake(stack: Tensor, *_: Any) -> Tensor:
        return stack.new_empty(stack.shape[1:])

    @staticmethod
    def save(tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        return tensors[1:]

    @staticmethod
    def backward(saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any) -> Tensors:
        return (MaskWeight.call((grads[0], *saved), settings),)

    @staticmethod
    def jvp(saved: Tensors, settings: Settings, *tangents: Tensor | None) -> Tensor:
        tangent: Tensor = MaskWeightSum.call((*tangents, *saved), settings)
        return tangent


OPERATORS = (MaskWeight, MaskWeightSum)
