"""Alpha dropout, for self-normalising networks: of elements and of channels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from fused_dropout._core.checks import check_probability_and_input
from fused_dropout._core.rates import keep_rate
from fused_dropout._core.rng import check_single_source
from fused_dropout._ops.dropout import dropout_settings
from fused_dropout.functional._channel_dropout import check_channels
from fused_dropout.functional._dropout import NO_DIMS, as_shared_dims, run_dropout

# What SELU tends to for large negative inputs, -scale * alpha (Klambauer et al. 2017, section 3).
SELU_FLOOR = -1.7580993408473766


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
    p = check_probability_and_input(p, input)
    dims = as_shared_dims(broadcast_dims, input)
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
    p = check_probability_and_input(p, input)
    if training and 0 < p < 1 and input.numel() > 0:  # what torch checks
        check_channels(input, 2)
    dims = tuple(range(2, input.dim()))
    return _alpha_dropout(input, p, training, inplace, dims, generator, seed, rng_state)


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
    a, b = _alpha_affine(q) if q > 0 else (0.0, 0.0)  # at p = 1 torch gives zeros
    settings = dropout_settings(p, a, shared_dims, b, a * SELU_FLOOR + b)
    return run_dropout(input, q, settings, inplace, generator, seed, rng_state)


def _alpha_affine(q: float) -> tuple[float, float]:
    """(a, b) of alpha dropout with keep rate q > 0."""
    dropped = 1.0 - q
    a = 1.0 / math.sqrt(q + SELU_FLOOR**2 * dropped * q)
    return a, -a * SELU_FLOOR * dropped
