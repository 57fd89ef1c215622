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
    """Sets elements to SELU's lowest value with probability ``p``, and keeps mean and variance.

    Equivalent to :func:`torch.nn.functional.alpha_dropout`, with exact rates. An input of mean 0
    and variance 1, such as SELU's output, keeps both. Backward draws the mask again from 16 bytes
    of random state.

    With keep rate q, drop rate d = 1 - q and floor f = -1.7581, an element x that is kept becomes
    ``a x + b`` and a dropped one ``a f + b``, where ``a = (q + f^2 d q)^(-1/2)`` and
    ``b = -a f d``. At p = 1 the result is 0.

    The mask has the shape of ``input`` with the dimensions of ``broadcast_dims`` set to 1; its
    elements in row-major order are those of
    ``fused_dropout.mask(numel, p, seed=seed, offset=offset)``.

    Source: Klambauer et al., "Self-Normalizing Neural Networks", NeurIPS 2017, section 3.

    Args:
        input: any shape, strides and memory format; float32, bfloat16, float16 or float64.
        p: drop probability in [0, 1]. The keep rate is q = rint((1 - p) 2^16) / 2^16.
        training: if False, the default as in torch, returns ``input``.
        inplace: write the result into ``input``.
        broadcast_dims: dimensions along which the mask is shared; default: none.
        generator: draws the random state; default: torch's generator of the input's device.
        seed: an int that makes the call a pure function of its arguments: it uses the mask of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.

    Returns:
        A tensor of the shape and memory format of ``input``, differentiable any number of times.

    Raises:
        ValueError: p out of range; more than one of generator, seed and rng_state.
        IndexError: a dimension of ``broadcast_dims`` that ``input`` does not have.
        RuntimeError: an integer dtype (NotImplementedError for complex numbers and 8-bit floats, as
            in torch); no kernels for the device; ``inplace`` on a leaf that requires grad, or on
            elements that share memory.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> F.alpha_dropout(torch.zeros(4), 0.5, training=True, seed=1)
        tensor([-0.7792,  0.7792, -0.7792, -0.7792])
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
    """Sets channels to SELU's lowest value with probability ``p``, and keeps mean and variance.

    Equivalent to :func:`torch.nn.functional.feature_alpha_dropout`, with exact rates: alpha dropout
    of whole channels. Backward draws the mask again from 16 bytes of random state.

    With keep rate q, drop rate d = 1 - q and floor f = -1.7581, an element x that is kept becomes
    ``a x + b`` and a dropped one ``a f + b``, where ``a = (q + f^2 d q)^(-1/2)`` and
    ``b = -a f d``. At p = 1 the result is 0.

    Channel c of example n has element ``n * C + c`` of
    ``fused_dropout.mask(N * C, p, seed=seed, offset=offset)``.

    Source: Klambauer et al., "Self-Normalizing Neural Networks", NeurIPS 2017, section 3.

    Args:
        input: ``[N, C, ...]``; any strides and memory format; float32, bfloat16, float16 or
            float64.
        p: drop probability in [0, 1]. The keep rate is q = rint((1 - p) 2^16) / 2^16.
        training: if False, the default as in torch, returns ``input``.
        inplace: write the result into ``input``.
        generator: draws the random state; default: torch's generator of the input's device.
        seed: an int that makes the call a pure function of its arguments: it uses the mask of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.

    Returns:
        A tensor of the shape and memory format of ``input``, differentiable any number of times.

    Raises:
        ValueError: p out of range; more than one of generator, seed and rng_state.
        RuntimeError: fewer than 2 dimensions, in training; an integer dtype (NotImplementedError
            for complex numbers and 8-bit floats, as in torch); no kernels for the device;
            ``inplace`` on a leaf that requires grad, or on elements that share memory.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> F.feature_alpha_dropout(torch.zeros(1, 3, 2), 0.5, training=True, seed=1)
        tensor([[[-0.7792, -0.7792],
                 [ 0.7792,  0.7792],
                 [-0.7792, -0.7792]]])
    """
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
