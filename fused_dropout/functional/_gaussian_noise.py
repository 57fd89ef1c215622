"""Gaussian noise of given mean and variance."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from fused_dropout._core import checks, extension
from fused_dropout._core.rng import check_single_source, resolve_rng_state
from fused_dropout._ops.gaussian_noise import GaussianNoise


def gaussian_noise(
    mean: Tensor,
    variance: Tensor,
    *,
    eps: float = 1e-8,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    r"""Normal numbers of the given mean and variance, element by element, differentiable in both.

    .. math:: out = mean + \sqrt{variance + eps} \; z, \quad z \sim N(0, 1)

    z is :func:`fused_dropout.normal_noise` of the shape of ``mean``. The local reparameterisation
    trick needs it for a layer whose weights are normal. Backward draws z again: 16 bytes of random
    state and ``variance`` are kept for it.

    Source: Kingma, Salimans and Welling, "Variational Dropout and the Local Reparameterization
    Trick", NeurIPS 2015, section 2.2.

    Args:
        mean: any shape and strides; float32, bfloat16, float16 or float64.
        variance: the shape, dtype and device of ``mean``; at least -eps, or the result is NaN.
        eps: added to the variance, at least 0, so that its gradient is finite where it is 0.
        generator: draws the random state; default: torch's generator of the device of ``mean``.
        seed: an int that makes the call a pure function of its arguments: it uses the noise of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.

    Returns:
        A tensor of the shape and memory format of ``mean``, differentiable any number of times.

    Raises:
        ValueError: eps out of range; more than one of generator, seed and rng_state.
        RuntimeError: shapes, dtypes or devices that do not fit; no kernels for the device.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> F.gaussian_noise(torch.zeros(4), torch.ones(4), seed=1)
        tensor([-0.4295,  0.9100, -1.0072, -1.8226])
    """
    if has_torch_function((mean, variance)):
        return handle_torch_function(
            gaussian_noise,
            (mean, variance),
            mean,
            variance,
            eps=eps,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
        )
    eps = checks.check_number(eps, "eps", at_least=0.0)
    check_single_source(generator, seed, rng_state)
    for tensor, name in ((mean, "mean"), (variance, "variance")):
        checks.check_dense(tensor, name)
        checks.check_float_tensor(tensor, name)
    checks.check_like(variance, "variance", mean, "mean", mean.shape)
    extension.require_kernels(mean)
    if mean.numel() == 0:
        return mean + variance
    state = resolve_rng_state(mean, generator, seed, rng_state)
    output: Tensor = GaussianNoise.run((mean, variance, state), (eps,))
    return output
