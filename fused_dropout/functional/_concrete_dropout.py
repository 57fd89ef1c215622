"""Concrete dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from fused_dropout._core import checks, extension
from fused_dropout._core.rng import check_single_source, resolve_rng_state
from fused_dropout._ops.concrete_dropout import ConcreteDropout
from fused_dropout.functional._dropout import NO_DIMS, as_shared_dims


def concrete_dropout(
    input: Tensor,
    logit_p: Tensor,
    temperature: float = 0.1,
    training: bool = True,
    *,
    broadcast_dims: Sequence[int] = NO_DIMS,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    r"""Dropout by a relaxed mask, differentiable in the drop probability.

    .. math::
        out = input \cdot (1 - z) / (1 - p), \quad
        z = \mathrm{sigmoid}((\log p - \log(1 - p) + \log u - \log(1 - u)) / t)

    p is sigmoid(logit_p), t the temperature, and u :func:`fused_dropout.uniform_noise` of the
    input's shape with the dimensions of ``broadcast_dims`` set to 1: by default every element has
    its own. Backward draws u again from 16 bytes of random state.

    Source: Gal, Hron and Kendall, "Concrete Dropout", NeurIPS 2017, equation 5; their code for
    convolutions drops whole channels, as ``broadcast_dims=(2, 3)`` does.

    Args:
        input: any shape, strides and memory format; float32, bfloat16, float16 or float64.
        logit_p: one element of a floating dtype on the input's device, log(p / (1 - p)).
        temperature: above 0; the mask tends to 0 and 1 as it tends to 0. The paper uses 0.1.
        training: if False, returns ``input``.
        broadcast_dims: dimensions along which the mask is shared; default: none.
        generator: draws the random state; default: torch's generator of the input's device.
        seed: an int that makes the call a pure function of its arguments: it uses the noise of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.

    Returns:
        A tensor of the shape and memory format of ``input``, differentiable any number of times in
        ``input`` and ``logit_p``. The gradient of ``logit_p`` is summed in an order that
        depends on the shape alone. Where an element is dropped, 1 - z is small but not 0: infinite
        and NaN elements stay so.

    Raises:
        ValueError: temperature out of range; more than one of generator, seed and rng_state.
        IndexError: a dimension of ``broadcast_dims`` that ``input`` does not have.
        RuntimeError: shapes, dtypes or devices that do not fit; no kernels for the device.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> F.concrete_dropout(torch.ones(4), torch.zeros(1), seed=1).round(decimals=2)  # p = 0.5
        tensor([0.0300, 2.0000, 2.0000, 0.0000])
    """
    if has_torch_function((input, logit_p)):
        return handle_torch_function(
            concrete_dropout,
            (input, logit_p),
            input,
            logit_p,
            temperature,
            training,
            broadcast_dims=broadcast_dims,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
        )
    temperature = checks.check_number(temperature, "temperature", above=0.0)
    check_single_source(generator, seed, rng_state)
    checks.check_dense(input, "input")
    _check_logit(logit_p, input)
    dims = () if broadcast_dims is NO_DIMS else as_shared_dims(broadcast_dims, input)
    if not training or input.numel() == 0:
        return input
    checks.check_float_tensor(input, "input")
    extension.require_kernels(input)
    state = resolve_rng_state(input, generator, seed, rng_state)
    computed_in = torch.float64 if input.dtype == torch.float64 else torch.float32
    logit = logit_p.to(computed_in)
    settings: tuple[Any, ...] = (temperature, dims) if dims else (temperature,)
    output: Tensor = ConcreteDropout.run((input, logit, state), settings)
    return output


def _check_logit(logit_p: Tensor, input: Tensor) -> None:
    checks.check_dense(logit_p, "logit_p")
    checks.check_float_tensor(logit_p, "logit_p")
    if logit_p.numel() != 1:
        raise RuntimeError(f"logit_p must have one element, got shape {list(logit_p.shape)}")
    checks.check_same_device(logit_p, "logit_p", input, "input")
