"""Gaussian dropout."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from fused_dropout._core import checks, extension
from fused_dropout._core.rng import check_single_source, resolve_rng_state
from fused_dropout._ops.gaussian_dropout import GaussianDropout, GaussianDropoutInPlace


def gaussian_dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    r"""Multiplies each element by noise of mean 1 and variance ``p / (1 - p)``, that of dropout.

    .. math:: out = input \cdot (1 + \sqrt{p / (1 - p)} \; z), \quad z \sim N(0, 1)

    z is :func:`fused_dropout.normal_noise` of the input's shape. Backward draws it again from 16
    bytes of random state.

    Source: Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting",
    JMLR 2014, section 10.

    Args:
        input: any shape, strides and memory format; float32, bfloat16, float16 or float64.
        p: the drop probability of the dropout that it stands for, in [0, 1).
        training: if False, returns ``input``; so does p = 0.
        inplace: write the result into ``input``.
        generator: draws the random state; default: torch's generator of the input's device.
        seed: an int that makes the call a pure function of its arguments: it uses the noise of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.

    Returns:
        A tensor of the shape and memory format of ``input``, differentiable any number of times.
        Infinite and NaN elements stay so: nothing is dropped.

    Raises:
        ValueError: p out of range; more than one of generator, seed and rng_state.
        RuntimeError: an integer dtype (NotImplementedError for complex numbers and 8-bit floats, as
            in torch); no kernels for the device; ``inplace`` on a leaf that requires grad, or on
            elements that share memory.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> F.gaussian_dropout(torch.ones(4), 0.5, seed=1)
        tensor([ 0.5705,  1.9100, -0.0072, -0.8226])
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            gaussian_dropout,
            (input,),
            input,
            p,
            training,
            inplace,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
        )
    p = check_gaussian_rate(p)
    check_single_source(generator, seed, rng_state)
    checks.check_dense(input, "input")
    if not training or p == 0 or input.numel() == 0:
        return input
    checks.check_float_tensor(input, "input")
    extension.require_kernels(input)
    state = resolve_rng_state(input, generator, seed, rng_state)
    op = GaussianDropoutInPlace if inplace else GaussianDropout
    output: Tensor = op.run((input, state), (math.sqrt(p / (1 - p)),))
    return output


def check_gaussian_rate(p: Any) -> float:
    """``p`` as a float in [0, 1)."""
    p = checks.check_probability(p)
    if p == 1:
        raise ValueError(
            "p must be below 1 for Gaussian dropout, got 1: its noise would have the variance "
            "p / (1 - p), which is infinite"
        )
    return p
