"""Bernoulli dropout: of elements, of channels, with shared masks, for self-normalising networks."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import handle_torch_function, has_torch_function_unary

from fused_dropout._core import checks, extension
from fused_dropout._core.rates import (
    CONVENTIONS,
    INVERTED,
    PAPER,
    Convention,
    inverse_keep_rate,
    keep_rate,
)
from fused_dropout._core.rng import check_single_source, resolve_rng_state, unused_rng_state
from fused_dropout._ops.dropout import Dropout, DropoutInPlace, dropout_settings
from fused_dropout.functional._packed_sequence import on_padded

NO_DIMS = ()

Sequences = TypeVar("Sequences", Tensor, PackedSequence)

# What SELU tends to for large negative inputs, -scale * alpha (Klambauer et al. 2017, section 3).
SELU_FLOOR = -1.7580993408473766


def dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    broadcast_dims: Sequence[int] = NO_DIMS,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
    convention: Convention = "inverted",
) -> Tensor:
    r"""Zeroes elements with probability ``p`` and divides the others by the keep rate.

    Equivalent to :func:`torch.nn.functional.dropout`, with exact rates, and to
    ``flax.linen.Dropout`` with ``broadcast_dims``. Backward draws the mask again from 16 bytes of
    random state.

    The mask has the shape of ``input`` with the dimensions of ``broadcast_dims`` set to 1. Its
    elements, counted in row-major order whatever the strides, are those of
    ``fused_dropout.mask(numel, p, seed=seed, offset=offset)``. A dropped element is 0, and so is
    its gradient, even where ``input`` or the gradient is infinite or NaN.

    Source: Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting",
    JMLR 2014.

    Args:
        input: any shape, strides and memory format; float32, bfloat16, float16 or float64.
        p: drop probability in [0, 1]. The keep rate is q = rint((1 - p) 2^16) / 2^16, and the scale
            is exactly 1/q.
        training: if False, returns ``input`` (times q with ``convention="paper"``).
        inplace: write the result into ``input``.
        broadcast_dims: dimensions along which the mask is shared.
        generator: draws the random state; default: torch's generator of the input's device.
        seed: makes the call a pure function: the mask of seed ``seed`` and offset 0.
        rng_state: int64[2] tensor (seed, offset), likewise.
        convention: ``"inverted"`` divides by q in training; ``"paper"`` multiplies by q in
            evaluation instead.

    Returns:
        The shape and memory format of ``input``, differentiable (any number of times).

    Raises:
        ValueError: p or convention out of range; more than one of generator, seed and rng_state.
        IndexError: a dimension of ``broadcast_dims`` that ``input`` lacks.
        RuntimeError: a dtype that is not one of those above (NotImplementedError for complex and
            8-bit floats, as torch); no kernels for the device; ``inplace`` on a leaf that requires
            grad, or on elements that share memory.
        TypeError: an argument of the wrong type.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            dropout,
            (input,),
            input,
            p,
            training,
            inplace,
            broadcast_dims=broadcast_dims,
            convention=convention,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
        )
    # Small calls are mostly Python, so what is seldom given is looked at only where it is, and the
    # checks that pass are not called.
    if type(p) is not float or not 0.0 <= p <= 1.0:
        p = checks.check_probability(p)
    if not isinstance(input, Tensor) or input.layout is not torch.strided or input.is_nested:
        checks.check_dense(input, "input")
    if convention is not INVERTED:
        checks.check_choice(convention, "convention", CONVENTIONS)
    if generator is not None or seed is not None or rng_state is not None:
        check_single_source(generator, seed, rng_state)
    dims = () if broadcast_dims is NO_DIMS else _as_shared_dims(broadcast_dims, input)
    if not training:
        return _scaled(input, keep_rate(p), inplace) if convention == PAPER else input
    prepare = _settings if is_compiling() else _cached_settings
    q, settings = prepare(p, dims, convention)
    return run_dropout(input, q, settings, inplace, generator, seed, rng_state)


def _settings(
    p: float, shared_dims: tuple[int, ...], convention: Convention
) -> tuple[float, tuple[Any, ...]]:
    """The keep rate, and what the operator is to do."""
    scale = inverse_keep_rate(p) if convention == INVERTED else 1.0
    return keep_rate(p), dropout_settings(p, scale, shared_dims)


_cached_settings = functools.lru_cache(maxsize=1024)(_settings)


def dropout1d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    """Drops whole channels of ``[N, C, L]`` or ``[C, L]``, as torch's function of this name.

    Channel c of example n has element n C + c of the mask (see :func:`dropout`).

    Source: Tompson et al., "Efficient Object Localization Using Convolutional Networks", CVPR 2015.
    Arguments and errors as :func:`dropout`; RuntimeError for another number of dimensions.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            dropout1d,
            (input,),
            input,
            p,
            training,
            inplace,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
        )
    p = _check(input, p)
    if input.dim() not in (2, 3):
        raise RuntimeError(
            f"dropout1d: Expected 2D or 3D input, but received a {input.dim()}D input. It drops "
            "channels of [N, C, L] or [C, L]"
        )
    first_shared = input.dim() - 1
    return _drop_channels(input, first_shared, p, training, inplace, generator, seed, rng_state)


def dropout2d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    """Drops whole channels of ``[N, C, H, W]``, as torch's function of this name.

    Like torch's, it reads 3 dimensions as ``[N, C, L]``, with a warning, and takes any number from
    2 on.
    Source, arguments and errors as :func:`dropout1d`.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            dropout2d,
            (input,),
            input,
            p,
            training,
            inplace,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
        )
    p = _check(input, p)
    if input.dim() == 3:
        warnings.warn(
            "dropout2d: Received a 3D input to dropout2d and assuming that channel-wise 1D dropout "
            "behavior is desired - input is interpreted as shape (N, C, L), where C is the channel "
            "dim. Use dropout1d to say so plainly.",
            stacklevel=2,
        )
    elif input.dim() != 4:
        _warn_of_dimensions("dropout2d", input.dim(), "[N, C, H, W]")
    return _drop_channels(input, 2, p, training, inplace, generator, seed, rng_state)


def dropout3d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    """Drops whole channels of ``[N, C, D, H, W]`` or ``[C, D, H, W]``, as torch's of this name.

    Like torch's, it takes fewer dimensions with a warning, the first of them for C. Source,
    arguments and errors as :func:`dropout1d`.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            dropout3d,
            (input,),
            input,
            p,
            training,
            inplace,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
        )
    p = _check(input, p)
    if input.dim() not in (4, 5):
        _warn_of_dimensions("dropout3d", input.dim(), "[N, C, D, H, W] or [C, D, H, W]")
    first_shared = 2 if input.dim() == 5 else 1
    return _drop_channels(input, first_shared, p, training, inplace, generator, seed, rng_state)


def alpha_dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = False,
    inplace: bool = False,
    *,
    broadcast_dims: Sequence[int] = NO_DIMS,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    r"""Sets elements to SELU's floor and keeps mean 0 and variance 1, as torch's of this name.

    With keep rate q, drop rate d = 1 - q and floor f = -1.7581, kept elements become ``a x + b``
    and dropped ones ``a f + b``, where ``a = (q + f^2 d q)^(-1/2)`` and ``b = -a f d``.

    Source: Klambauer et al., "Self-Normalizing Neural Networks", NeurIPS 2017, section 3.
    Arguments and errors as :func:`dropout`.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            alpha_dropout,
            (input,),
            input,
            p,
            training,
            inplace,
            broadcast_dims=broadcast_dims,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
        )
    p = _check(input, p)
    dims = _as_shared_dims(broadcast_dims, input)
    return _alpha_dropout(input, p, training, inplace, dims, generator, seed, rng_state)


def feature_alpha_dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = False,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    """:func:`alpha_dropout` of whole channels of ``[N, C, ...]``, as torch's of this name."""
    if has_torch_function_unary(input):
        return handle_torch_function(
            feature_alpha_dropout,
            (input,),
            input,
            p,
            training,
            inplace,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
        )
    p = _check(input, p)
    if training and 0 < p < 1 and input.numel() > 0:  # what torch checks
        _check_channels(input, 2)
    dims = tuple(range(2, input.dim()))
    return _alpha_dropout(input, p, training, inplace, dims, generator, seed, rng_state)


def locked_dropout(
    input: Sequences,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    batch_first: bool = False,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
) -> Sequences:
    """Dropout of a sequence with one mask for all its steps.

    Source: Gal and Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent Neural
    Networks", NeurIPS 2016; "locked" in Merity et al., "Regularizing and Optimizing LSTM Language
    Models", ICLR 2018.

    Args:
        input: ``[T, N, ...]``, or ``[N, T, ...]`` with ``batch_first``; or a PackedSequence, whose
            masks are those of the same sequences padded, ``[T, N, ...]``.
        batch_first: which of the first two dimensions is time; says nothing of a PackedSequence.

    The other arguments and errors as :func:`dropout`; RuntimeError for fewer than 2 dimensions.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            locked_dropout,
            (input,),
            input,
            p,
            training,
            inplace,
            batch_first=batch_first,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
        )
    if isinstance(input, PackedSequence):
        sources: Any = {"generator": generator, "seed": seed, "rng_state": rng_state}
        drop = partial(locked_dropout, p=checks.check_probability(p), **sources)
        return on_padded(drop, input, inplace) if training else input
    checks.check_dense(input, "input")
    time = 1 if batch_first else 0
    if input.dim() < 2:
        wanted = "[N, T, ...]" if batch_first else "[T, N, ...]"
        raise RuntimeError(f"input must have shape {wanted}, got {list(input.shape)}")
    return dropout(
        input,
        p,
        training,
        inplace,
        broadcast_dims=(time,),
        generator=generator,
        seed=seed,
        rng_state=rng_state,
    )


def run_dropout(
    input: Tensor,
    q: float,
    settings: tuple[Any, ...],
    inplace: bool,
    generator: torch.Generator | None,
    seed: int | None,
    rng_state: Tensor | None,
    residual: Tensor | None = None,
    name: str = "input",
) -> Tensor:
    """The operator on checked arguments, in training; q is the keep rate."""
    if input.numel() == 0:
        return input if residual is None else input + residual
    if 0.0 < q < 1.0:
        checks.check_float_tensor(input, name)
        extension.require_kernels(input)
        state = resolve_rng_state(input, generator, seed, rng_state)
    else:
        if residual is None and q == 1.0 and (inplace or settings[0] == 0.0):
            return input
        # Torch takes any dtype where all is dropped.
        if q == 0.0 and residual is None and not input.is_floating_point():
            zero = input.new_zeros(())
            return input.mul_(zero) if inplace else input * zero
        checks.check_float_tensor(input, name)
        extension.require_kernels(input)
        state = unused_rng_state()
    op = DropoutInPlace if inplace else Dropout
    output: Tensor = op.run((input, residual, state), settings)
    return output


def _as_shared_dims(broadcast_dims: Any, input: Tensor) -> tuple[int, ...]:
    return checks.as_dims(broadcast_dims, "broadcast_dims", input.dim())


def _check(input: Tensor, p: float) -> float:
    """``p`` as a float; in torch's order, so that the same mistake is reported first."""
    p = checks.check_probability(p)
    checks.check_dense(input, "input")
    return p


def _drop_channels(
    input: Tensor,
    first_shared: int,
    p: float,
    training: bool,
    inplace: bool,
    generator: torch.Generator | None,
    seed: int | None,
    rng_state: Tensor | None,
) -> Tensor:
    """Dropout with a mask that is shared along all dimensions from ``first_shared`` on."""
    if training and 0 < p < 1 and input.numel() > 0:  # what torch checks
        _check_channels(input, first_shared)
    return dropout(
        input,
        p,
        training,
        inplace,
        broadcast_dims=range(first_shared, input.dim()),
        generator=generator,
        seed=seed,
        rng_state=rng_state,
    )


def _check_channels(input: Tensor, dimensions: int) -> None:
    if input.dim() < dimensions:
        raise RuntimeError(
            "Feature dropout requires at least 2 dimensions in the input, one of them for the "
            f"batch, which dropout3d adds; got shape {list(input.shape)}"
        )


def _warn_of_dimensions(name: str, dimensions: int, wanted: str) -> None:
    warnings.warn(
        f"{name}: Received a {dimensions}-D input to {name}, which is deprecated and will result "
        "in an error in a future release. To retain the behavior and silence this warning, please "
        f"use dropout instead. {name} drops channels of {wanted}.",
        stacklevel=3,
    )


def _alpha_dropout(
    input: Tensor,
    p: float,
    training: bool,
    inplace: bool,
    shared_dims: tuple[int, ...],
    generator: torch.Generator | None,
    seed: int | None,
    rng_state: Tensor | None,
) -> Tensor:
    check_single_source(generator, seed, rng_state)
    if not training or p == 0 or input.numel() == 0:
        return input
    q = keep_rate(p)
    a, b = alpha_affine(q) if q > 0 else (0.0, 0.0)  # at p = 1 torch gives zeros
    settings = dropout_settings(p, a, shared_dims, b, a * SELU_FLOOR + b)
    return run_dropout(input, q, settings, inplace, generator, seed, rng_state)


def alpha_affine(q: float) -> tuple[float, float]:
    """(a, b) of alpha dropout with keep rate q > 0."""
    dropped = 1.0 - q
    a = 1.0 / math.sqrt(q + SELU_FLOOR**2 * dropped * q)
    return a, -a * SELU_FLOOR * dropped


def _scaled(input: Tensor, factor: float, inplace: bool) -> Tensor:
    return input.mul_(factor) if inplace else input * factor
