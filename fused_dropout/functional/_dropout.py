"""Bernoulli dropout, of elements or with masks that dimensions share."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
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

NO_DIMS = ()


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
    """Zeroes elements with probability ``p`` and divides the others by the keep rate.

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
        broadcast_dims: dimensions along which the mask is shared; default: none.
        generator: draws the random state; default: torch's generator of the input's device.
        seed: an int that makes the call a pure function of its arguments: it uses the mask of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.
        convention: ``"inverted"`` divides by q in training; ``"paper"`` multiplies by q in
            evaluation instead.

    Returns:
        A tensor of the shape and memory format of ``input``, differentiable any number of times.

    Raises:
        ValueError: p or convention out of range; more than one of generator, seed and rng_state.
        IndexError: a dimension of ``broadcast_dims`` that ``input`` does not have.
        RuntimeError: an integer dtype (NotImplementedError for complex numbers and 8-bit floats, as
            in torch); no kernels for the device; ``inplace`` on a leaf that requires grad, or on
            elements that share memory.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> F.dropout(torch.ones(8), 0.5, seed=1)
        tensor([0., 2., 0., 0., 0., 2., 2., 2.])
        >>> F.dropout(torch.ones(2, 4), 0.5, broadcast_dims=[0], seed=1)  # one mask for both rows
        tensor([[0., 2., 0., 0.],
                [0., 2., 0., 0.]])
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
    dims = () if broadcast_dims is NO_DIMS else as_shared_dims(broadcast_dims, input)
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


def as_shared_dims(broadcast_dims: Any, input: Tensor) -> tuple[int, ...]:
    return checks.as_dims(broadcast_dims, "broadcast_dims", input.dim())


def _scaled(input: Tensor, factor: float, inplace: bool) -> Tensor:
    return input.mul_(factor) if inplace else input * factor
