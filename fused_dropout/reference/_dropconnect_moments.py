"""DropConnect's inference with its moments and samples written out."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fused_dropout.reference._masks import Convention, keep_rate
from fused_dropout.reference._noise import normal_noise


def dropconnect_moments(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    p: float = 0.5,
    *,
    convention: Convention = "inverted",
    mask_bias: bool = True,
) -> tuple[Tensor, Tensor]:
    """Mean and variance of a DropConnect layer's output over its masks (Wan et al. 2013).

    Each product is kept with probability q: its mean is q times the product, its variance q (1 - q)
    times the square of it. The inverted convention divides the layer by q.

    Args:
        input: ``[..., in_features]``.
        weight: ``[out_features, in_features]``.
        bias: ``[out_features]`` or None.
        p: drop probability in [0, 1].
        convention: ``"inverted"`` divides by the keep rate q in training, ``"paper"`` does not.
        mask_bias: whether the bias is one of the products; if not, it is added as it is.

    Returns:
        (mean, variance), each ``[..., out_features]``.
    """
    q = keep_rate(p)
    products = weight * input[..., None, :]
    if bias is not None and mask_bias:
        products = torch.cat([products, bias.expand(products.shape[:-1])[..., None]], -1)
    mean = q * products.sum(-1)
    variance = q * (1 - q) * products.square().sum(-1)
    if convention == "inverted" and q > 0:
        mean, variance = mean / q, variance / q**2
    return mean if bias is None or mask_bias else mean + bias, variance


def dropconnect_gaussian(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    p: float = 0.5,
    activation: Callable[[Tensor], Tensor] = torch.relu,
    samples: int = 1000,
    *,
    seed: int,
    offset: int = 0,
    convention: Convention = "inverted",
    mask_bias: bool = True,
) -> Tensor:
    """The mean activation over normal pre-activations of the layer's moments (Algorithm 2).

    It takes the memory of all samples.

    Args:
        input, weight, bias, p, convention, mask_bias: as for :func:`dropconnect_moments`.
        activation: called with the pre-activations ``[samples, ..., out_features]``.
        samples: how many.
        seed, offset: the random state of the normals, ints modulo 2^64.

    Returns:
        A tensor ``[..., out_features]``.
    """
    mean, variance = dropconnect_moments(
        input, weight, bias, p, convention=convention, mask_bias=mask_bias
    )
    size = (samples, *mean.shape)
    noise = normal_noise(size, seed=seed, offset=offset, device=mean.device).to(mean.dtype)
    return activation(mean + variance.sqrt() * noise).mean(0)


def expected_relu(mean: Tensor, variance: Tensor) -> Tensor:
    """The mean of max(0, y) for normal y: mean Phi(t) + deviation phi(t), t = mean / deviation.

    Args:
        mean: of any shape.
        variance: of the shape of ``mean``, above 0.

    Returns:
        A tensor of the shape of ``mean``.
    """
    deviation = variance.sqrt()
    t = mean / deviation
    density = torch.exp(-t.square() / 2) / math.sqrt(2 * math.pi)
    return mean * torch.special.ndtr(t) + deviation * density
