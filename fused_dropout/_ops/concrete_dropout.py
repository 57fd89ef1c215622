"""Concrete dropout: input * (1 - z) / (1 - p), and its gradients to input and the logit of p.

With a = (1 - z) / (1 - p) and b = p - z / t: d a / d logit_p = a b. So the gradients are
grad_output a and the sum of grad_output input a b.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_dropout._ops._differentiable import NAMESPACE, Differentiable, Settings, Tensors, total


class ConcreteDropout(Differentiable):
    """Tensors: input, logit_p (one element), rng_state. Settings: temperature, then shared_dims."""

    name = "concrete_dropout"
    inputs = 2

    @staticmethod
    def fake(input: Tensor, *_: Any) -> Tensor:
        return torch.empty_like(input)

    @staticmethod
    def save(tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        input, logit_p, rng_state = tensors
        return (input if needs[1] else None), logit_p, rng_state

    @staticmethod
    def backward(saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any) -> Tensors:
        if not needs[1]:
            return ConcreteDropout.call((*grads, *saved[1:]), settings), None
        d_input, d_logit = ConcreteDropoutBackward.call((*grads, *saved), settings)
        return (d_input if needs[0] else None), d_logit

    @staticmethod
    def jvp(saved: Tensors, settings: Settings, *tangents: Tensor | None) -> Tensor:
        input, logit_p, rng_state = saved
        of_input, of_logit = tangents
        terms: list[Tensor] = []
        if of_input is not None:
            terms.append(ConcreteDropout.call((of_input, logit_p, rng_state), settings))
        if of_logit is not None:
            assert input is not None
            f = _factors(input, logit_p, rng_state, settings)
            term = input.to(f.a.dtype) * f.a * f.b * of_logit.reshape(())
            terms.append(term.to(input.dtype))
        return total(terms)


class ConcreteDropoutBackward(Differentiable):
    """(gradient of the input, gradient of logit_p).

    Tensors: grad_output, input, logit_p, rng_state. Settings: temperature, then shared_dims. Its
    own derivatives are plain torch on the uniforms drawn again: rarely asked for, so they need not
    be fast.
    """

    name = "concrete_dropout_backward"
    inputs = 3

    @staticmethod
    def fake(grad_output: Tensor, input: Tensor, logit_p: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
        return torch.empty_like(input), torch.empty_like(logit_p)

    @staticmethod
    def save(tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        return tensors

    @staticmethod
    def backward(saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any) -> Tensors:
        grad_output, input, logit_p, rng_state = saved
        assert grad_output is not None and input is not None and logit_p is not None
        f = _factors(input, logit_p, rng_state, settings)
        g, x = grad_output.to(f.a.dtype), input.to(f.a.dtype)
        h_input = torch.zeros_like(x) if grads[0] is None else grads[0].to(f.a.dtype)
        h = torch.zeros_like(f.a[:0].sum()) if grads[1] is None else grads[1].reshape(())
        # Of the sum of h_input g a and of h times the sum of g x a b.
        d_grad_output = f.a * (h_input + h * x * f.b)
        d_input = h * g * f.a * f.b
        d_logit = (f.a * g * (h_input * f.b + h * x * (f.b * f.b + f.slope))).sum()
        return (
            d_grad_output.to(grad_output.dtype) if needs[0] else None,
            d_input.to(input.dtype) if needs[1] else None,
            d_logit.reshape(logit_p.shape) if needs[2] else None,
        )

    @staticmethod
    def jvp(saved: Tensors, settings: Settings, *tangents: Tensor | None) -> tuple[Tensor, Tensor]:
        grad_output, input, logit_p, rng_state = saved
        assert grad_output is not None and input is not None and logit_p is not None
        f = _factors(input, logit_p, rng_state, settings)
        g, x = grad_output.to(f.a.dtype), input.to(f.a.dtype)
        of_g, of_x, of_logit = (
            torch.zeros_like(like) if tangent is None else tangent.to(f.a.dtype)
            for tangent, like in zip(tangents, (g, x, logit_p), strict=True)
        )
        change = of_logit.reshape(())
        of_d_input = f.a * (of_g + g * f.b * change)
        product = of_g * x + g * of_x
        of_d_logit = f.a * (product * f.b + g * x * (f.b * f.b + f.slope) * change)
        return of_d_input.to(input.dtype), of_d_logit.sum().reshape(logit_p.shape)


class _Factors(NamedTuple):
    """a, b and d b / d logit_p of the mask's elements; it has size 1 where elements share them."""

    a: Tensor
    b: Tensor
    slope: Tensor


def _factors(
    input: Tensor, logit_p: Tensor | None, rng_state: Tensor | None, settings: Settings
) -> _Factors:
    assert logit_p is not None and rng_state is not None
    temperature, *rest = settings
    shared_dims = (rest[0] if rest else None) or ()
    shape = [1 if dim in shared_dims else size for dim, size in enumerate(input.shape)]
    # Noise is drawn where the random state is, which may be the CPU.
    state = rng_state.to(input.device)
    draw = getattr(torch.ops, NAMESPACE).uniform_noise
    u = draw(state, shape, logit_p.dtype)
    logit = logit_p.reshape(())
    z = torch.sigmoid((logit + torch.logit(u)) / temperature)
    p = torch.sigmoid(logit)
    return _Factors(
        (1 - z) / (1 - p),
        p - z / temperature,
        p * (1 - p) - z * (1 - z) / temperature**2,
    )


OPERATORS = (ConcreteDropout, ConcreteDropoutBackward)
