"""Stochastic depth: residual branches that are dropped for whole samples (Huang et al. 2016)."""

from __future__ import annotations

import functools
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import (
    handle_torch_function,
    has_torch_function,
    has_torch_function_unary,
)

from fused_dropout._core import checks
from fused_dropout._core.rates import inverse_keep_rate, keep_rate
from fused_dropout._core.rng import check_single_source
from fused_dropout._ops.dropout import dropout_settings
from fused_dropout.functional._dropout import run_dropout

Mode = Literal["batch", "row"]
MODES = get_args(Mode)


def stochastic_depth(
    input: Tensor,
    p: float,
    mode: Mode,
    training: bool = True,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    """Zeroes whole samples with probability ``p`` and divides the others by the keep rate.

    Equivalent to :func:`torchvision.ops.stochastic_depth`, with exact rates. What is dropped is
    exactly 0, even where it was infinite or NaN.

    Source: Huang, Sun, Liu, Sedra and Weinberger, "Deep Networks with Stochastic Depth", ECCV 2016,
    section 3 (which multiplies by the keep rate in evaluation instead).

    Args:
        input: ``[N, ...]``, any strides; float32, bfloat16, float16 or float64.
        p: drop probability in [0, 1]. The keep rate is q = rint((1 - p) 2^16) / 2^16, and the scale
            is exactly 1/q.
        mode: ``"row"``: sample n is kept if element n of the mask is (``fused_dropout.mask(N, p)``
            with the same random state); ``"batch"``: all samples are kept if element 0 is.
        training: if False, returns ``input``.
        generator: draws the random state; default: torch's generator of the input's device.
        seed: an int that makes the call a pure function of its arguments: it uses the mask of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.

    Returns:
        A tensor of the shape and memory format of ``input``, differentiable any number of times.

    Raises:
        ValueError: p or mode out of range; more than one of generator, seed and rng_state.
        IndexError: ``"row"`` for a tensor without dimensions, in training.
        RuntimeError: an integer dtype (NotImplementedError for complex numbers and 8-bit floats, as
            in torch); no kernels for the device.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> F.stochastic_depth(torch.ones(4, 2), 0.5, "row", seed=1)
        tensor([[0., 0.],
                [2., 2.],
                [0., 0.],
                [0., 0.]])
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            stochastic_depth,
            (input,),
            input,
            p,
            mode,
            training,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
        )
    p = checks.check_probability(p)
    checks.check_choice(mode, "mode", MODES)
    check_single_source(generator, seed, rng_state)
    checks.check_dense(input, "input")
    if not training or p == 0.0:
        return input
    q, settings = _settings(input, p, mode, scale_by_keep=True)
    return run_dropout(input, q, settings, False, generator, seed, rng_state)


def drop_path(
    x: Tensor,
    drop_prob: float = 0.0,
    training: bool = False,
    scale_by_keep: bool = True,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    """Zeroes whole samples with probability ``drop_prob`` and scales up the others.

    Equivalent to timm's ``drop_path``, whose arguments it has, with exact rates; the same as
    :func:`fused_dropout.functional.stochastic_depth` with mode ``"row"``. Sample n is kept if
    element n of ``fused_dropout.mask(N, drop_prob)`` with the same random state is. What is dropped
    is exactly 0, even where it was infinite or NaN.

    Source: Huang, Sun, Liu, Sedra and Weinberger, "Deep Networks with Stochastic Depth", ECCV 2016,
    section 3 (which multiplies by the keep rate in evaluation instead).

    Args:
        x: ``[N, ...]``, any strides; float32, bfloat16, float16 or float64.
        drop_prob: drop probability in [0, 1]. The keep rate is q = rint((1 - drop_prob) 2^16) /
            2^16.
        training: if False, the default as in timm, returns ``x``.
        scale_by_keep: divide what is kept by the keep rate, exactly.
        generator: draws the random state; default: torch's generator of the input's device.
        seed: an int that makes the call a pure function of its arguments: it uses the mask of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.

    Returns:
        A tensor of the shape and memory format of ``x``, differentiable any number of times.

    Raises:
        ValueError: drop_prob out of range; more than one of generator, seed and rng_state.
        IndexError: a tensor without dimensions, in training.
        RuntimeError: an integer dtype (NotImplementedError for complex numbers and 8-bit floats, as
            in torch); no kernels for the device.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> F.drop_path(torch.ones(4, 2), 0.5, training=True, seed=1)
        tensor([[0., 0.],
                [2., 2.],
                [0., 0.],
                [0., 0.]])
    """
    if has_torch_function_unary(x):
        return handle_torch_function(
            drop_path,
            (x,),
            x,
            drop_prob,
            training,
            scale_by_keep,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
        )
    if type(drop_prob) is not float or not 0.0 <= drop_prob <= 1.0:
        drop_prob = checks.check_probability(drop_prob, "drop_prob")
    if generator is not None or seed is not None or rng_state is not None:
        check_single_source(generator, seed, rng_state)
    if not isinstance(x, Tensor) or x.layout is not torch.strided or x.is_nested:
        checks.check_dense(x, "x")
    if not training or drop_prob == 0.0:
        return x
    q, settings = _settings(x, drop_prob, "row", scale_by_keep)
    return run_dropout(x, q, settings, False, generator, seed, rng_state, name="x")


def drop_path_add(
    x: Tensor,
    branch: Tensor,
    drop_prob: float = 0.0,
    training: bool = False,
    scale_by_keep: bool = True,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    """``x + drop_path(branch)`` in one pass over memory: the end of a residual block.

    Where the branch of a sample is dropped, the result is exactly ``x``. The sum is rounded once,
    and the gradient of ``x`` is the result's own, uncopied. Sample n of the branch is kept if
    element n of ``fused_dropout.mask(N, drop_prob)`` with the same random state is.

    Source: Huang, Sun, Liu, Sedra and Weinberger, "Deep Networks with Stochastic Depth", ECCV 2016,
    section 3 (which multiplies by the keep rate in evaluation instead).

    Args:
        x: ``[N, ...]``, any strides; float32, bfloat16, float16 or float64.
        branch: tensor of the shape and device of ``x``. Where the dtypes differ, the lesser is
            converted first, as ``+`` does; that is a pass of its own.
        drop_prob: drop probability in [0, 1]. The keep rate is q = rint((1 - drop_prob) 2^16) /
            2^16.
        training: if False, the default as in timm, the result is ``x + branch``.
        scale_by_keep: divide what is kept by the keep rate, exactly.
        generator: draws the random state; default: torch's generator of the input's device.
        seed: an int that makes the call a pure function of its arguments: it uses the mask of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.

    Returns:
        A tensor of the shape of ``x`` and, in training, the memory format of ``branch``;
        differentiable any number of times.

    Raises:
        ValueError: drop_prob out of range; more than one of generator, seed and rng_state.
        IndexError: tensors without dimensions, in training.
        RuntimeError: ``branch`` has another shape or device than ``x``; an integer dtype
            (NotImplementedError for complex numbers and 8-bit floats, as in torch); no kernels for
            the device.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> F.drop_path_add(torch.ones(4, 2), torch.ones(4, 2), 0.5, training=True, seed=1)
        tensor([[1., 1.],
                [3., 3.],
                [1., 1.],
                [1., 1.]])
    """
    if has_torch_function((x, branch)):
        return handle_torch_function(
            drop_path_add,
            (x, branch),
            x,
            branch,
            drop_prob,
            training,
            scale_by_keep,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
        )
    drop_prob = checks.check_probability(drop_prob, "drop_prob")
    check_single_source(generator, seed, rng_state)
    checks.check_dense(x, "x")
    checks.check_dense(branch, "branch")
    checks.check_shape(branch, "branch", x.shape)
    checks.check_same_device(branch, "branch", x, "x")
    dtype = x.dtype if x.dtype == branch.dtype else common_dtype(x, branch)
    if not training or drop_prob == 0.0 or x.numel() == 0:
        return x + branch
    q, settings = _settings(branch, drop_prob, "row", scale_by_keep)
    if x.dtype != branch.dtype:
        x, branch = x.to(dtype), branch.to(dtype)
    return run_dropout(branch, q, settings, False, generator, seed, rng_state, x, "branch")


def common_dtype(x: Tensor, branch: Tensor) -> torch.dtype:
    """The dtype of ``x + branch``."""
    try:
        return torch.promote_types(x.dtype, branch.dtype)
    except RuntimeError as error:  # it does not say whose dtypes
        raise RuntimeError(
            f"branch must have a dtype that can be added to that of x, {x.dtype}; got "
            f"{branch.dtype}: {error}"
        ) from None


def linear_drop_rates(drop_rate: float, depth: int) -> list[float]:
    """Drop rates of ``depth`` residual blocks, from 0 for the first to ``drop_rate`` for the last.

    timm's rule, without its rounding to float32. Huang et al. 2016 (equation 4) start at
    ``drop_rate / depth`` instead: those are ``linear_drop_rates(drop_rate, depth + 1)[1:]``.

    Args:
        drop_rate: drop probability of the last block, in [0, 1].
        depth: number of blocks, 0 or more; a single block gets 0.

    Returns:
        A list of ``depth`` floats.

    Raises:
        ValueError: an argument out of range.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> F.linear_drop_rates(0.5, 3)
        [0.0, 0.25, 0.5]
    """
    drop_rate = checks.check_probability(drop_rate, "drop_rate")
    depth = checks.check_int(depth, "depth", 0, 2**31 - 1)
    return [drop_rate * block / max(1, depth - 1) for block in range(depth)]


def _settings(
    branch: Tensor, p: float, mode: Mode, scale_by_keep: bool
) -> tuple[float, tuple[Any, ...]]:
    """The keep rate, and what the operator is to do."""
    if mode == "row" and branch.dim() == 0:
        raise IndexError("dropping samples takes [N, ...], got a tensor without dimensions")
    first_shared = 1 if mode == "row" else 0
    prepare = _prepare if is_compiling() else _cached
    return prepare(branch.dim(), first_shared, p, scale_by_keep)


def _prepare(
    dims: int, first_shared: int, p: float, scale_by_keep: bool
) -> tuple[float, tuple[Any, ...]]:
    scale = inverse_keep_rate(p) if scale_by_keep else 1.0
    return keep_rate(p), dropout_settings(p, scale, tuple(range(first_shared, dims)))


_cached = functools.lru_cache(maxsize=1024)(_prepare)
