"""Operators that are differentiated: what torch is told of each, made from one description.

A description (:class:`Differentiable`) has three formulas: what to save, backward, and jvp. They
call operators only through :meth:`Differentiable.call`, so that every derivative can be
differentiated again. From them come

- an autograd kernel of the operator itself, for callers of `torch.ops.fused_dropout`, for
  torch.compile, torch.export, make_fx and AOTInductor;
- an old-style autograd Function, the cheapest that torch has, for eager calls;
- a new-style Function with forward mode and a batching rule, for torch.func's transforms and for
  torch.autograd.forward_ad. Every transform sees an operator first at the dispatch key
  FuncTorchDynamicLayerFrontMode, where it stands for the operator.

Whatever records operators (make_fx, AOTAutograd, FakeTensorMode, FLOP counters) sees the public
operator, whose derivatives it can take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, is_grad_enabled
from torch.autograd.forward_ad import unpack_dual
from torch.compiler import is_compiling

from fused_dropout._core.private_torch import (
    below_autograd,
    call_of,
    forward_levels,
    has_several_results,
    in_dual_level,
    tensor_arguments,
    transforms_active,
)

NAMESPACE = "fused_dropout"
TRANSFORMS = "FuncTorchDynamicLayerFrontMode"

# Where torch has no such context, operators have none of our autograd kernels (see `register`).
without_autograd_kernels = below_autograd or nullcontext

Tensors = tuple[Tensor | None, ...]
Settings = tuple[Any, ...]
Results = Any  # a Tensor, or a tuple of them
Shape = Sequence[int]
Dims = tuple[int | None, ...]  # of each tensor, the dimension that counts a batch's items, if any


class OpaqueSettings:
    """Settings as torch.func passes them on: whole.

    It takes tuples apart, and counts their leaves as operands.
    """

    __slots__ = ("values",)

    def __init__(self, values: Settings) -> None:
        self.values = values


class Differentiable:
    """One operator. Its tensors come first, and the first ``inputs`` of these are differentiated.

    Subclasses are never instantiated: they hold the description as static methods.
    """

    name: ClassVar[str]
    inputs: ClassVar[int]
    linear: ClassVar[bool] = False  # in all inputs together, so that jvp depends on no input
    # So many of the last results are not differentiated; they are saved behind what `save` returns.
    kept_results: ClassVar[int] = 0
    # Of a product: what torch.utils.flop_counter counts, from the shapes in place of the tensors.
    flops: ClassVar[Callable[..., int] | None] = None
    # Of an operator that is made of others: its arguments and results, and a kernel in Python. The
    # extension defines all other operators.
    schema: ClassVar[str | None] = None
    compute: ClassVar[Callable[..., Results]]

    # Set by `register`.
    operator: ClassVar[Any]
    kernel: ClassVar[Any]  # the operator, called with less Python
    tensors: ClassVar[int]
    eager: ClassVar[type[torch.autograd.Function]]
    general: ClassVar[type[torch.autograd.Function]]

    @staticmethod
    def fake(*args: Any) -> Results:
        """Results of the right shape, dtype, strides and device."""
        raise NotImplementedError

    @staticmethod
    def save(tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        """What backward needs where the inputs of ``needs`` get gradients."""
        raise NotImplementedError

    @classmethod
    def save_all(cls, tensors: Tensors, settings: Settings) -> Tensors:
        """What backward and jvp need for all inputs."""
        return cls.save(tensors, settings, (True,) * cls.inputs)

    @staticmethod
    def backward(saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any) -> Tensors:
        """The gradients of the inputs, where ``needs`` says so, from those of the results.

        A gradient is None where nothing was made of a result; at least one is given.
        """
        raise NotImplementedError

    @staticmethod
    def jvp(saved: Tensors, settings: Settings, *tangents: Tensor | None) -> Results:
        """The results' tangents, from those of the inputs; at least one is given."""
        raise NotImplementedError

    @classmethod
    def vmap(cls, items: int, dims: Dims, tensors: Tensors, settings: Settings) -> Any:
        """Results for a batch of ``items``, and the dimensions of the results that count them."""
        return item_by_item(cls.call, items, dims, tensors, settings)

    @classmethod
    def run(cls, tensors: Tensors, settings: Settings) -> Results:
        """What the functional forms call: as `call`, and torch.compile traces the operator."""
        if is_compiling():
            return cls.operator(*tensors, *settings)
        return cls.call(tensors, settings)

    @classmethod
    def call(cls, tensors: Tensors, settings: Settings) -> Results:
        """The operator, differentiably, in the cheapest way that is right."""
        if transforms_active() or (in_dual_level() and has_tangent(tensors[: cls.inputs])):
            return apply_general(cls, tensors, settings)
        if is_grad_enabled() and requires_grad(tensors):
            return cls.eager.apply(*tensors[: cls.inputs], (tensors[cls.inputs :], settings))
        return run_below_autograd(cls.kernel, tensors, settings)


class OwnDerivative(Differentiable):
    """An operator that is linear in its inputs, and whose derivatives are itself.

    It saves the other tensors. Backward and jvp here are those of an operator with one input.
    """

    inputs = 1
    linear = True

    @staticmethod
    def fake(input: Tensor, *_: Any) -> Tensor:
        return torch.empty_like(input)

    @classmethod
    def save(cls, tensors: Tensors, settings: Settings, needs: Sequence[bool]) -> Tensors:
        return tensors[cls.inputs :]

    @classmethod
    def backward(
        cls, saved: Tensors, settings: Settings, needs: Sequence[bool], *grads: Any
    ) -> Tensors:
        return (cls.call((*grads, *saved), settings),)

    @classmethod
    def jvp(cls, saved: Tensors, settings: Settings, *tangents: Tensor | None) -> Results:
        return cls.call((*tangents, *saved), settings)


def requires_grad(tensors: Tensors) -> bool:
    """Whether one of them does."""
    for tensor in tensors:  # noqa: SIM110 (any() on a generator takes twice as long)
        if tensor is not None and tensor.requires_grad:
            return True
    return False


def apply_general(op: type[Differentiable], tensors: Tensors, settings: Settings) -> Results:
    """The operator under transforms.

    Raises:
        NotImplementedError: forward mode over forward mode, where torch takes what a Function's jvp
            depends on for a constant; the result would be wrong without a word.
    """
    if not op.linear and forward_levels() > 1:
        raise NotImplementedError(
            f"{NAMESPACE}::{op.name} has no forward-mode derivative of forward-mode derivatives; "
            "use reverse mode for one of the two, as in jacfwd(jacrev(f)) or torch.func.hessian"
        )
    return op.general.apply(*tensors, OpaqueSettings(settings))


def total(terms: Sequence[Tensor]) -> Tensor:
    """The sum of one tensor or more."""
    result = terms[0]
    for term in terms[1:]:
        result = result + term
    return result


def has_tangent(tensors: Sequence[Tensor | None]) -> bool:
    """Whether forward-mode differentiation outside torch.func follows one of them."""
    try:
        return any(t is not None and unpack_dual(t)[1] is not None for t in tensors)
    except RuntimeError:  # torch's own batches of tangents cannot be asked; they may have some
        return True


def run_below_autograd(kernel: Any, tensors: Tensors, settings: Settings) -> Results:
    """The operator without its autograd kernel."""
    with without_autograd_kernels():
        return kernel(*tensors, *settings)


def gradients(op: type[Differentiable], ctx: Any, grads: tuple[Any, ...]) -> tuple[Any, ...]:
    """A Function's backward: the gradients of the operator's inputs, and None for the rest."""
    needs = ctx.needs_input_grad
    if all(grad is None for grad in grads):
        return (None,) * len(needs)
    found = op.backward(ctx.saved_tensors, ctx.settings, needs, *grads)
    return (*found, *[None] * (len(needs) - op.inputs))


def kept_of(op: type[Differentiable], results: Results) -> Tensors:
    """The results that are not differentiated, and that derivatives need."""
    return tuple(results[-op.kept_results :]) if op.kept_results else ()


def item_by_item(
    call: Any, items: int, dims: Dims, tensors: Tensors, settings: Settings
) -> tuple[Results, Any]:
    """A batch as a loop over its items; the results count them in dimension 0."""
    results = [
        call(
            tuple(
                tensor if tensor is None or dim is None else tensor.select(dim, item)
                for tensor, dim in zip(tensors, dims, strict=True)
            ),
            settings,
        )
        for item in range(items)
    ]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    stacked = tuple(torch.stack(each) for each in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def register(op: type[Differentiable], library: torch.library.Library) -> None:
    """Tells torch all of ``op``, whose schema the extension has defined, or ``op`` itself."""
    if op.schema is not None:
        library.define(f"{op.name}{op.schema}")
        for backend in ("CPU", "CUDA"):
            library.impl(op.name, op.compute, backend)
    op.operator = getattr(getattr(torch.ops, NAMESPACE), op.name).default
    op.kernel = call_of(op.operator)
    op.tensors = tensor_arguments(op.operator)
    op.eager = eager_function(op)
    op.general = _general_function(op)

    torch.library.register_fake(f"{NAMESPACE}::{op.name}", op.fake, lib=library)
    if below_autograd is None:
        _register_public_autograd(op, library)
    else:
        library.impl(op.name, _split_arguments(op, op.call), "Autograd")
    library.impl(op.name, _split_arguments(op, partial(apply_general, op)), TRANSFORMS)


def _split_arguments(op: type[Differentiable], call: Any) -> Any:
    """``call(tensors, settings)`` as a kernel of the operator."""

    def kernel(*args: Any) -> Results:
        tensors = args[: op.tensors]
        check_not_differentiated(op, tensors)
        return call(tensors, args[op.tensors :])

    return kernel


def check_not_differentiated(op: type[Differentiable], tensors: Tensors) -> None:
    """Raises where a derivative is wanted by a tensor that the operator takes as a constant."""
    for tensor in tensors[op.inputs :]:
        if tensor is None or not tensor.is_floating_point():
            continue
        wanted = tensor.requires_grad and is_grad_enabled()
        if wanted or (in_dual_level() and has_tangent((tensor,))):
            raise NotImplementedError(
                f"{NAMESPACE}::{op.name} is differentiable in its first {op.inputs} tensors only; "
                "detach the others"
            )


def _register_public_autograd(op: type[Differentiable], library: torch.library.Library) -> None:
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
        tensors, ctx.settings = inputs[: op.tensors], inputs[op.tensors :]
        saved = op.save(tensors, ctx.settings, ctx.needs_input_grad)
        ctx.save_for_backward(*saved, *kept_of(op, output))

    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        return gradients(op, ctx, grads)

    torch.library.register_autograd(
        f"{NAMESPACE}::{op.name}", backward, setup_context=setup_context, lib=library
    )


def eager_function(op: type[Differentiable]) -> type[torch.autograd.Function]:
    """Reverse mode without transforms.

    Arguments: the inputs, then ((the other tensors), settings) as one, since torch looks at each.
    """
    several = has_several_results(op.operator)

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Results:
            constants, ctx.settings = args[-1]
            tensors = args[:-1] + constants
            if several:
                ctx.set_materialize_grads(False)
            saved = op.save(tensors, ctx.settings, ctx.needs_input_grad)
            results = run_below_autograd(op.kernel, tensors, ctx.settings)
            if op.kept_results:
                kept = kept_of(op, results)
                ctx.mark_non_differentiable(*kept)
                saved += kept
            ctx.save_for_backward(*saved)
            return results

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
            return gradients(op, ctx, grads)

    Eager.__name__ = Eager.__qualname__ = op.__name__
    return Eager


def _general_function(op: type[Differentiable]) -> type[torch.autograd.Function]:
    """Reverse and forward mode and vmap. Arguments: the tensors, then OpaqueSettings."""

    class General(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Results:
            return run_below_autograd(op.kernel, args[:-1], args[-1].values)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
            *tensors, settings = inputs
            kept = kept_of(op, output)
            saved = op.save_all(tuple(tensors), settings.values) + kept
            ctx.mark_non_differentiable(*kept)
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*saved)
            ctx.save_for_forward(*saved)
            ctx.settings = settings.values

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
            return gradients(op, ctx, grads)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> Results:
            return op.jvp(ctx.saved_tensors, ctx.settings, *tangents[: op.inputs])

        @staticmethod
        def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
            *tensors, settings = args
            dims = in_dims[: op.tensors]
            return op.vmap(info.batch_size, dims, tuple(tensors), settings.values)

    General.__name__ = General.__qualname__ = op.__name__ + "UnderTransforms"
    return General
