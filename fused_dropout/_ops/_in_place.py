"""Operators that write their result into their first tensor.

torch functionalizes no operator of ours that returns what it changes. So whatever watches operators
(torch.compile, make_fx, modes, transforms), and autograd, sees the pure operator and a copy_; the
writing kernel itself runs only where nobody looks, and autograd is sure to let the tensor be
written to. What it refuses, its copy_ refuses too, before it changes anything.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fused_dropout._core.private_torch import (
    below_autograd,
    call_of,
    in_dual_level,
    is_plain_view,
    transforms_active,
)
from fused_dropout._ops._differentiable import (
    NAMESPACE,
    TRANSFORMS,
    Differentiable,
    Settings,
    Tensors,
    check_not_differentiated,
    gradients,
    has_tangent,
    run_below_autograd,
)


class InPlace:
    """The operator ``pure.name`` + "_"; its backward must not need the first tensor."""

    pure: ClassVar[type[Differentiable]]

    # Set by `register_in_place`.
    kernel: ClassVar[Any]
    function: ClassVar[type[torch.autograd.Function]]

    @classmethod
    def run(cls, tensors: Tensors, settings: Settings) -> Tensor:
        """What the functional forms call: as `call`, and torch.compile traces a copy."""
        if torch.compiler.is_compiling():
            input = tensors[0]
            assert input is not None
            return input.copy_(cls.pure.operator(*tensors, *settings))
        return cls.call(tensors, settings)

    @classmethod
    def call(cls, tensors: Tensors, settings: Settings) -> Tensor:
        """Writes the result into ``tensors[0]`` and returns it."""
        input, inputs = tensors[0], tensors[: cls.pure.inputs]
        assert input is not None
        if transforms_active() or (in_dual_level() and has_tangent(inputs)):
            return input.copy_(cls.pure.call(tensors, settings))
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
            if not is_writable(input):
                return input.copy_(cls.pure.call(tensors, settings))
            constants = tensors[cls.pure.inputs :]
            changed: Tensor = cls.function.apply(*inputs, (constants, settings))
            return changed
        return write_without_autograd(cls, tensors, settings)


def write_without_autograd(op: type[InPlace], tensors: Tensors, settings: Settings) -> Tensor:
    """The writing kernel. Autograd still learns that the tensor has changed."""
    input = tensors[0]
    if input is not None and input.is_inference() and not torch.is_inference_mode_enabled():
        return input.copy_(op.pure.call(tensors, settings))  # torch's error
    changed: Tensor = run_below_autograd(op.kernel, tensors, settings)
    increment_version(changed)
    return changed


def is_writable(input: Tensor) -> bool:
    """Whether autograd surely lets ``input`` be written to in a call that is differentiated."""
    if not input._is_view():
        return not (input.requires_grad and input.is_leaf)
    base = input._base
    assert base is not None
    return is_plain_view(input) and not (input.requires_grad and base.is_leaf)


def register_in_place(op: type[InPlace], library: torch.library.Library) -> None:
    """Tells torch all of ``op``, whose pure operator is registered."""
    pure = op.pure
    name = pure.name + "_"
    op.kernel = call_of(getattr(getattr(torch.ops, NAMESPACE), name).default)
    op.function = _function(op)

    def copied(*args: Any) -> Tensor:
        input: Tensor | None = args[0]
        if input is None:  # which a schema lets through
            raise TypeError(f"{NAMESPACE}::{name}: input must be a Tensor, got None")
        return input.copy_(pure.operator(*args))

    def with_autograd(*args: Any) -> Tensor:
        tensors, settings = args[: pure.tensors], args[pure.tensors :]
        check_not_differentiated(pure, tensors)
        inputs = tensors[: pure.inputs]
        wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)
        if wanted or (in_dual_level() and has_tangent(inputs)):
            return copied(*args)
        return write_without_autograd(op, tensors, settings)

    torch.library.register_fake(f"{NAMESPACE}::{name}", lambda input, *_: input, lib=library)
    library.impl(name, copied, "Python")
    library.impl(name, copied, TRANSFORMS)
    library.impl(name, copied if below_autograd is None else with_autograd, "Autograd")


def _function(op: type[InPlace]) -> type[torch.autograd.Function]:
    """Arguments: the inputs, then ((the other tensors), settings) as one."""
    pure = op.pure

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Tensor:
            constants, ctx.settings = args[-1]
            tensors = args[:-1] + constants
            ctx.mark_dirty(tensors[0])
            ctx.save_for_backward(*pure.save(tensors, ctx.settings, ctx.needs_input_grad))
            run_below_autograd(op.kernel, tensors, ctx.settings)
            return tensors[0]

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
            return gradients(pure, ctx, (grad,))

    Eager.__name__ = Eager.__qualname__ = op.__name__
    return Eager
