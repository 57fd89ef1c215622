"""Stochastic depth that does not compute the branch of dropped samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.fx
from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import handle_torch_function, has_torch_function

from fused_dropout._core import checks, extension
from fused_dropout._core.private_torch import in_dual_level, modes_active, transforms_active
from fused_dropout._core.rates import DIGITS, inverse_keep_rate, keep_rate
from fused_dropout._core.rng import check_single_source, resolve_rng_state, unused_rng_state
from fused_dropout._ops.dropout import Dropout
from fused_dropout.functional._drop_path import common_dtype, drop_path, drop_path_add

Inputs = tuple[Tensor | None, ...]
Scaling = tuple[float, float]  # the dropout operator's settings: p, 0 or 1 here, and scale


def drop_path_skip(
    x: Tensor | Inputs,
    module: Callable[..., Tensor],
    drop_prob: float = 0.0,
    training: bool = False,
    scale_by_keep: bool = True,
    *,
    residual: Tensor | None = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    """``drop_path(module(x))``, where ``module`` runs on the kept samples alone.

    The kept samples of ``x`` are gathered, ``module`` runs on them, and its output goes back to
    their places among zeros. So a step saves the share ``drop_prob`` of the branch's work and
    activations. The result is that of :func:`fused_dropout.functional.drop_path` of ``module(x)``,
    and with ``residual`` that of :func:`fused_dropout.functional.drop_path_add`, with the same
    random state, for a module that treats samples alone. A residual block
    ``x + drop_path(f(norm(x)))`` becomes
    ``drop_path_skip(x, lambda x: f(norm(x)), drop_prob, training, residual=x)``.

    What else runs in ``module`` sees the kept samples only: dropout draws masks for them, and batch
    normalisation takes its statistics over them. Where no sample is kept, ``module`` runs on the
    first one and its output is dropped. So every parameter takes part in every step, with gradients
    of 0 and not None, as with ``drop_path``, and as DistributedDataParallel and collective
    operations in ``module`` need; a batch of one sample therefore saves nothing.

    Which samples are kept is computed by the host from the random state, without waiting for the
    device. Where the host does not know that state or may not decide by it (a CUDA graph is
    captured, ``rng_state`` is on a GPU, torch.compile, torch.export, torch.fx, torch.func's
    transforms, forward mode, modes such as make_fx's), ``module`` runs on all samples and the
    dropped ones are zeroed: the same result without the saving. A compiled ``module`` in an eager
    block skips; it should be compiled with dynamic shapes, since the number of samples changes.

    Source: Huang, Sun, Liu, Sedra and Weinberger, "Deep Networks with Stochastic Depth", ECCV 2016,
    section 3.

    Args:
        x: ``[N, ...]``, any dtype and strides; or a tuple of such tensors and None, which
            ``module`` gets as its positional arguments.
        module: a module or function of the samples, which returns a tensor with a row for each:
            float32, bfloat16, float16 or float64, of any shape behind the first dimension.
        drop_prob: drop probability in [0, 1]. The keep rate is q = rint((1 - drop_prob) 2^16) /
            2^16. Sample n is kept if element n of ``fused_dropout.mask(N, drop_prob)`` is.
        training: if False, the default as in timm, the result is ``module(x)``, plus ``residual``.
        scale_by_keep: divide what is kept by the keep rate, exactly.
        residual: added to the result, in the same rounding; of the shape of ``module(x)``. The
            dtypes may differ, as under autocast.
        generator: draws the random state, before ``module`` runs; default: torch's generator of the
            device of ``x``.
        seed: an int that makes the call a pure function of its arguments: it uses the mask of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.

    Returns:
        A tensor of the shape of ``module(x)``, in the memory format of ``residual``, or without one
        of what ``module`` returned. Differentiable as often as ``module`` is.

    Raises:
        ValueError: drop_prob out of range; more than one of generator, seed and rng_state.
        IndexError: ``x`` without dimensions.
        RuntimeError: tensors of different lengths or devices; an output of ``module`` without a row
            for each sample, or of another shape than ``residual``, or of an integer dtype; no
            kernels for the device.
        TypeError: an argument, or the output of ``module``, of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> F.drop_path_skip(torch.ones(4, 2), torch.neg, 0.5, training=True, seed=1)
        tensor([[ 0.,  0.],
                [-2., -2.],
                [ 0.,  0.],
                [ 0.,  0.]])
    """
    inputs = x if isinstance(x, tuple) else (x,)
    overridable = tuple(each for each in (*inputs, residual) if each is not None)
    sources: dict[str, Any] = {"generator": generator, "seed": seed, "rng_state": rng_state}
    if any(isinstance(each, torch.fx.Proxy) for each in overridable):
        # torch.fx takes no function as an argument of a node: it records what the module does.
        if residual is None:
            return drop_path(module(*inputs), drop_prob, training, scale_by_keep, **sources)
        return drop_path_add(
            residual, module(*inputs), drop_prob, training, scale_by_keep, **sources
        )
    if has_torch_function(overridable):
        return handle_torch_function(
            drop_path_skip,
            overridable,
            x,
            module,
            drop_prob,
            training,
            scale_by_keep,
            residual=residual,
            **sources,
        )
    drop_prob = checks.check_probability(drop_prob, "drop_prob")
    check_single_source(generator, seed, rng_state)
    if not callable(module):
        raise TypeError(f"module must be a Module or a function, got {type(module).__name__}")
    first = _check_inputs(inputs, residual)
    count, q = len(first), keep_rate(drop_prob)
    if not training or drop_prob == 0.0 or count == 0 or q == 1.0:
        return _zeroed(inputs, module, residual, drop_prob, False, scale_by_keep, None)
    if q == 0.0:
        state = unused_rng_state()
    else:
        extension.require_kernels(first)
        state = resolve_rng_state(first, generator, seed, rng_state)
    if not _host_may_choose(first, state):
        return _zeroed(inputs, module, residual, drop_prob, True, scale_by_keep, state)
    kept = _kept_samples(state, count, drop_prob)
    scaling = (0.0, inverse_keep_rate(drop_prob) if scale_by_keep else 1.0)
    if len(kept) == count:
        branch = _run(module, inputs, count, residual)
        return _scaled(*_in_one_dtype(branch, residual), scaling)
    if len(kept) == 0:
        kept, scaling = kept.new_zeros(1), (1.0, 1.0)  # the first sample, all of it dropped
    if first.is_cuda:  # from pinned memory nothing waits
        kept = kept.pin_memory().to(first.device, non_blocking=True)
    gathered = tuple(None if each is None else _Gather.apply(each, kept) for each in inputs)
    branch = _run(module, gathered, len(kept), residual)
    if residual is None:
        return _placed(_scaled(branch, None, scaling), kept, count)
    branch, residual = _in_one_dtype(branch, residual)
    summed: Tensor = _AddAt.apply(residual, branch, kept, scaling)
    return summed


# ---- arguments and results -----------------------------------------------------------------------


def _check_inputs(inputs: Inputs, residual: Tensor | None) -> Tensor:
    """Tensors with a row for each sample, on one device; returns the first of them."""
    several = len(inputs) > 1
    named = {f"x[{place}]" if several else "x": each for place, each in enumerate(inputs)}
    named["residual"] = residual
    given = {name: each for name, each in named.items() if each is not None}
    if not given or next(iter(given)) == "residual":
        raise TypeError("x must be a Tensor or a tuple with a Tensor, got no Tensor")
    for name, tensor in given.items():
        checks.check_dense(tensor, name)
        if tensor.dim() == 0:
            raise IndexError(f"dropping samples takes {name} [N, ...], got one without dimensions")
    (name, first), *others = given.items()
    for other, tensor in others:
        checks.check_same_device(tensor, other, first, name)
        if len(tensor) != len(first):
            raise RuntimeError(
                f"{other} must have a row for each sample of {name}, {len(first)}; got "
                f"{len(tensor)}"
            )
    return first


def _run(
    module: Callable[..., Tensor],
    inputs: Inputs,
    samples: int,
    residual: Tensor | None,
    training: bool = True,
) -> Tensor:
    """The module's output, checked; in evaluation it may have any dtype."""
    output = module(*inputs)
    if not isinstance(output, Tensor):
        raise TypeError(
            f"module must return a Tensor, got {type(output).__name__}; a function can pick one, "
            "as lambda x: module(x)[0]"
        )
    checks.check_dense(output, "module's output")
    if output.dim() == 0 or len(output) != samples:
        raise RuntimeError(
            f"module must return a row for each of its {samples} samples, got shape "
            f"{list(output.shape)}"
        )
    if residual is not None:
        checks.check_shape(output, "module's output", (samples, *residual.shape[1:]))
        checks.check_same_device(output, "module's output", residual, "residual")
    if training:
        checks.check_float_tensor(output, "module's output")
    return output


def _in_one_dtype(branch: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Both as ``residual + branch`` converts them."""
    if residual is None or residual.dtype == branch.dtype:
        return branch, residual
    dtype = common_dtype(residual, branch)
    return branch.to(dtype), residual.to(dtype)


# ---- which samples -------------------------------------------------------------------------------


def _host_may_choose(x: Tensor, state: Tensor) -> bool:
    """Whether the host knows the random state, and nobody records what it does with it."""
    if is_compiling() or transforms_active() or in_dual_level() or modes_active():
        return False
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    return state.is_cpu and (x.is_cpu or x.is_cuda) and not torch.jit.is_tracing()


def _kept_samples(state: Tensor, count: int, p: float) -> Tensor:
    """Their numbers, in order, on the CPU."""
    kept: Tensor = extension.operators().mask(state, 1, count, p, 0, DIGITS)
    return kept[0].nonzero()[:, 0]


def _zeroed(
    inputs: Inputs,
    module: Callable[..., Tensor],
    residual: Tensor | None,
    drop_prob: float,
    training: bool,
    scale_by_keep: bool,
    state: Tensor | None,
) -> Tensor:
    """The same result by running the module on all samples."""
    samples = next(len(each) for each in inputs if each is not None)
    branch = _run(module, inputs, samples, residual, training)
    if residual is None:
        return drop_path(branch, drop_prob, training, scale_by_keep, rng_state=state)
    return drop_path_add(residual, branch, drop_prob, training, scale_by_keep, rng_state=state)


# ---- moving samples ------------------------------------------------------------------------------


def _scaled(branch: Tensor, residual: Tensor | None, scaling: Scaling) -> Tensor:
    """``scale * branch + residual`` rounded once; with p = 1 the branch counts as dropped."""
    if residual is None and scaling == (0.0, 1.0):
        return branch
    output: Tensor = Dropout.run((branch, residual, unused_rng_state()), scaling)
    return output


def _memory_order(x: Tensor) -> tuple[list[int], list[int]]:
    """The dimensions from the outermost in memory inwards, and the way back.

    Those of an expanded tensor as they are.
    """
    strides = x.stride()
    order = list(range(x.dim()))
    if 0 not in strides:
        order.sort(key=lambda dim: -strides[dim])
    return order, [order.index(dim) for dim in range(x.dim())]


def _gathered(x: Tensor, kept: Tensor) -> Tensor:
    """The kept rows of ``x``, in its memory format; index_select alone makes them contiguous."""
    order, back = _memory_order(x)
    return x.permute(order).index_select(back[0], kept).permute(back)


def _placed(rows: Tensor, kept: Tensor, count: int) -> Tensor:
    """``count`` rows in the memory format of ``rows``: these at the kept places, and zeros."""
    order, back = _memory_order(rows)
    inside = rows.permute(order)
    sizes = list(inside.shape)
    sizes[back[0]] = count
    return inside.new_zeros(sizes).index_copy_(back[0], kept, inside).permute(back)


class _Gather(torch.autograd.Function):
    """`_gathered`. Its own derivative adds into zeros, in no fixed order on a GPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor) -> Tensor:
        ctx.kept, ctx.count = kept, len(x)
        return _gathered(x, kept)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _placed(grad, ctx.kept, ctx.count), None


class _AddAt(torch.autograd.Function):
    """``residual``, with the branch added to its kept rows. Its gradient is the result's own."""

    @staticmethod
    def forward(
        ctx: Any, residual: Tensor, branch: Tensor, kept: Tensor, scaling: Scaling
    ) -> Tensor:
        ctx.kept, ctx.scaling = kept, scaling
        rows = _scaled(branch, residual.index_select(0, kept), scaling)
        return residual.clone().index_copy_(0, kept, rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        to_branch = None
        if ctx.needs_input_grad[1]:
            to_branch = _scaled(_gathered(grad, ctx.kept), None, ctx.scaling)
        return grad, to_branch, None, None
