"""Gaussian noise: mean + sqrt(variance + eps) * z, and its gradient to the variance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fused_dropout._ops._differentiable import Differentiable, Settings, Tensors, total


class GaussianNoise(Differentiable):
    """Tensors: mean, variance, rng_state. Settings: eps."""

    name = "gaussian_noise"
    inputs = 2

    @staticmethod
    def fake(mean: Tensor, *_: Any) -> Tensor:
        return torch.empty_like(mean)

    @staticmethod
    def save(tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        return tensors[1:] if needs[1] else ()

    @staticmethod
    def backward(saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any) -> Tensors:
        (grad,) = grads
        d_variance = GaussianNoiseDVariance.call((grad, *saved), settings) if needs[1] else None
        return (grad if needs[0] else None), d_variance

    @staticmethod
    def jvp(saved: Tensors, settings: Settings, *tangents: Tensor | None) -> Tensor | None:
        of_mean, of_variance = tangents
        if of_variance is None:
            return of_mean
        # What multiplies the gradient multiplies the tangent.
        tangent: Tensor = GaussianNoiseDVariance.call((of_variance, *saved), settings)
        return tangent if of_mean is None else of_mean + tangent


class GaussianNoiseDVariance(Differentiable):
    """grad_output * z / (2 sqrt(variance + eps)).

    Tensors: grad_output, variance, rng_state. Settings: eps.
    """

    name = "gaussian_noise_d_variance"
    inputs = 2

    @staticmethod
    def fake(grad_output: Tensor, *_: Any) -> Tensor:
        return torch.empty_like(grad_output)

    @staticmethod
    def save(tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        grad_output, variance, rng_state = tensors
        return (grad_output if needs[1] else None), variance, rng_state

    @staticmethod
    def backward(saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any) -> Tensors:
        grad_output, *rest = saved
        (h,) = grads
        call = GaussianNoiseDVariance.call
        d_grad_output = call((h, *rest), settings) if needs[0] else None
        d_variance = None
        if needs[1]:
            d_variance = call((h * grad_output, *rest), settings) * _slope(rest[0], settings)
        return d_grad_output, d_variance

    @staticmethod
    def jvp(saved: Tensors, settings: Settings, *tangents: Tensor | None) -> Tensor:
        grad_output, *rest = saved
        of_grad_output, of_variance = tangents
        call = GaussianNoiseDVariance.call
        terms: list[Tensor] = []
        if of_grad_output is not None:
            terms.append(call((of_grad_output, *rest), settings))
        if of_variance is not None:
            change = of_variance * _slope(rest[0], settings)
            terms.append(call((grad_output, *rest), settings) * change)
        return total(terms)


def _slope(variance: Any, settings: Settings) -> Tensor:
    """The derivative of (variance + eps)^(-1/2), as a multiple of itself."""
    return -0.5 / (variance + settings[0])


OPERATORS = (GaussianNoise, GaussianNoiseDVariance)
