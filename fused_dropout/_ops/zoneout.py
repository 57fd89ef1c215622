"""Zoneout: kept ? input : previous. Its gradients are the two parts of the output's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fused_dropout._ops._differentiable import Differentiable, Settings, Tensors
from fused_dropout._ops.dropout import Dropout


class Zoneout(Differentiable):
    """Tensors: input, previous, rng_state. Settings: p. Only the random state is saved."""

    name = "zoneout"
    inputs = 2
    linear = True

    @staticmethod
    def fake(input: Tensor, *_: Any) -> Tensor:
        return torch.empty_like(input)

    @staticmethod
    def save(tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        return tensors[2:]

    @staticmethod
    def backward(saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any) -> Tensors:
        (grad,) = grads
        if not needs[1]:
            return _kept(grad, saved, settings), None
        d_input, d_previous = ZoneoutBackward.call((grad, *saved), settings)
        return (d_input if needs[0] else None), d_previous

    @staticmethod
    def jvp(saved: Tensors, settings: Settings, *tangents: Tensor | None) -> Tensor:
        return _merged(tangents, saved, settings)


class ZoneoutBackward(Differentiable):
    """(kept ? grad : 0, kept ? 0 : grad). Tensors: grad, rng_state. Settings: p."""

    name = "zoneout_backward"
    inputs = 1
    linear = True

    @staticmethod
    def fake(grad: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return torch.empty_like(grad), torch.empty_like(grad)

    @staticmethod
    def save(tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        return tensors[1:]

    @staticmethod
    def backward(saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any) -> Tensors:
        return (_merged(grads, saved, settings),)

    @staticmethod
    def jvp(saved: Tensors, settings: Settings, *tangents: Tensor | None) -> tuple[Tensor, Tensor]:
        (tangent,) = tangents
        of_both: tuple[Tensor, Tensor] = ZoneoutBackward.call((tangent, *saved), settings)
        return of_both


def _merged(parts: Sequence[Tensor | None], saved: Tensors, settings: Settings) -> Tensor:
    """Zoneout of two tensors, of which one may be None, which stands for zeros."""
    of_input, of_previous = parts
    if of_previous is None:
        return _kept(of_input, saved, settings)
    if of_input is None:
        of_input = torch.zeros_like(of_previous)
    merged: Tensor = Zoneout.call((of_input, of_previous, *saved), settings)
    return merged


def _kept(tensor: Tensor | None, saved: Tensors, settings: Settings) -> Tensor:
    """``tensor`` where the mask keeps an element, else 0: dropout's pass, without a scale."""
    return Dropout.call((tensor, None, *saved), (*settings, 1.0))


OPERATORS = (Zoneout, ZoneoutBackward)
