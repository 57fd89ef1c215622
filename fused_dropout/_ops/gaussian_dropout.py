"""Gaussian dropout: input * (1 + sigma * z). Its gradient is the same again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fused_dropout._ops._differentiable import Differentiable, Settings, Tensors
from fused_dropout._ops._in_place import InPlace


class GaussianDropout(Differentiable):
    """Tensors: input, rng_state. Settings: sigma. Nothing but the random state is saved."""

    name = "gaussian_dropout"
    inputs = 1
    linear = True

    @staticmethod
    def fake(input: Tensor, *_: Any) -> Tensor:
        return torch.empty_like(input)

    @staticmethod
    def save(tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        return (tensors[1],)

    @staticmethod
    def backward(saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any) -> Tensors:
        return (GaussianDropout.call((*grads, *saved), settings),)

    @staticmethod
    def jvp(saved: Tensors, settings: Settings, *tangents: Tensor | None) -> Tensor:
        result: Tensor = GaussianDropout.call((*tangents, *saved), settings)
        return result


class GaussianDropoutInPlace(InPlace):
    """The same, written into the input."""

    pure = GaussianDropout
