"""Dropout: (kept ? scale * input + shift : fill) + residual. Its gradient is the same again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, is_grad_enabled

from fused_dropout._core.private_torch import (
    apply_of,
    in_dual_level,
    transforms_active,
    version_of,
)
from fused_dropout._ops._differentiable import (
    Dims,
    OwnDerivative,
    Settings,
    Tensors,
    item_by_item,
    without_autograd_kernels,
)
from fused_dropout._ops._in_place import InPlace

LINEAR_PART = 3  # settings: all but shift and fill, which no derivative has


def dropout_settings(
    p: float,
    scale: float,
    shared_dims: Sequence[int] = (),
    shift: float = 0.0,
    fill: float = 0.0,
) -> Settings:
    """The operator's settings without its defaults. Elements share a mask bit on shared_dims."""
    if shift == fill == 0.0:
        return (p, scale, shared_dims) if shared_dims else (p, scale)
    return (p, scale, shared_dims or None, shift, fill)


class Dropout(OwnDerivative):
    """Tensors: input, residual or None, rng_state. Nothing but the random state is saved."""

    name = "dropout"
    inputs = 2

    @classmethod
    def backward(
        cls, saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any
    ) -> Tensors:
        (grad,) = grads
        d_input = cls.call((grad, None, *saved), settings[:LINEAR_PART]) if needs[0] else None
        return d_input, (grad if needs[1] else None)

    @classmethod
    def jvp(cls, saved: Tensors, settings: Settings, *tangents: Tensor | None) -> Tensor | None:
        of_input, of_residual = tangents
        if of_input is None:
            return of_residual
        return cls.call((of_input, of_residual, *saved), settings[:LINEAR_PART])

    @classmethod
    def call(cls, tensors: Tensors, settings: Settings) -> Tensor:
        """As of every operator, with less Python, which on a small tensor is most of a call."""
        input, residual, rng_state = tensors
        if (
            input is None
            or rng_state is None
            or version_of is None
            or transforms_active()
            or in_dual_level()
        ):
            output: Tensor = super().call(tensors, settings)
            return output
        if is_grad_enabled() and (
            input.requires_grad or (residual is not None and residual.requires_grad)
        ):
            return _apply_eager(input, residual, (rng_state, version_of(rng_state), settings))
        with without_autograd_kernels():
            output = cls.kernel(input, residual, rng_state, *settings)
        return output

    @classmethod
    def vmap(cls, items: int, dims: Dims, tensors: Tensors, settings: Settings) -> Any:
        """Items that share the random state share the mask, so that one call does them all."""
        input, residual, rng_state = tensors
        if dims[2] is not None:
            return item_by_item(cls.call, items, dims, tensors, settings)
        p, scale, *rest = settings
        shared_dims, *affine = rest or (None,)
        shared = (0, *(dim + 1 for dim in shared_dims or ()))
        batched = (_items_first(input, dims[0], items), _items_first(residual, dims[1], items))
        return cls.call((*batched, rng_state), (p, scale, shared, *affine)), 0


class EagerDropout(torch.autograd.Function):
    """What `eager_function` gives, with less Python.

    The random state is an attribute, because saving a tensor takes as long as drawing one, with
    what a saved tensor has: an error where it was changed since.
    """

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, residual: Tensor | None, constants: tuple[Tensor, int, Settings]
    ) -> Tensor:
        ctx.rng_state, ctx.version, ctx.settings = constants
        with without_autograd_kernels():
            output: Tensor = Dropout.kernel(input, residual, ctx.rng_state, *ctx.settings)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Tensors:
        rng_state: Tensor = ctx.rng_state
        if version_of is not None and version_of(rng_state) != ctx.version:
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an "
                "inplace operation: the rng_state of dropout"
            )
        needs = ctx.needs_input_grad
        return *Dropout.backward((rng_state,), ctx.settings, needs, grad), None


_apply_eager = apply_of(EagerDropout)


class DropoutInPlace(InPlace):
    """The same, written into the input."""

    pure = Dropout


def _items_first(tensor: Tensor | None, dim: int | None, items: int) -> Tensor | None:
    if tensor is None:
        return None
    return tensor.expand(items, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


OPERATORS = (Dropout, DropoutInPlace)
