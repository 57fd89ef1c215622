"""Continuous noise and the ops on it, restated readably; csrc/common/noise.h has the same rules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fused_dropout.reference._masks import philox4x32_10

STREAM = 2  # of the masks' streams; noise uses its digit slot 0


def noise_words(count: int, seed: int, offset: int = 0, first: int = 0) -> NDArray[np.uint32]:
    """The random words of elements first .. first + count - 1: word k % 4 of call k // 4."""
    seed, offset = seed % 2**64, offset % 2**64
    calls = np.arange(first // 4, (first + count + 3) // 4, dtype=np.uint64)
    counter = np.empty((len(calls), 4), dtype=np.uint32)
    counter[:, 0] = calls & np.uint64(0xFFFFFFFF)
    counter[:, 1] = np.uint64(1 << 31 | STREAM << 24) | calls >> np.uint64(32)
    counter[:, 2] = offset % 2**32
    counter[:, 3] = offset >> 32
    words = philox4x32_10(counter, (seed % 2**32, seed >> 32)).reshape(-1)
    return words[first % 4 :][:count]


def uniforms_of_words(words: NDArray[np.uint32]) -> NDArray[np.float64]:
    """((word >> 9) + 1/2) 2^-23: in (0, 1), and exact in float32."""
    return ((words >> np.uint32(9)) + 0.5) * 2.0**-23


def normals_of_words(words: NDArray[np.uint32]) -> NDArray[np.float64]:
    """Standard normals by Box and Muller from pairs of words; an even number of them."""
    u = uniforms_of_words(words).reshape(-1, 2)
    radius = np.sqrt(-2 * np.log(u[:, 0]))
    # Quarter turns first, exactly: near its zeros the sine of a rounded angle would be wrong.
    quarters = np.rint(4 * u[:, 1])
    angle = 2 * math.pi * (u[:, 1] - quarters / 4)
    sine, cosine = np.sin(angle), np.cos(angle)
    turned = [(cosine, sine), (-sine, cosine), (-cosine, -sine), (sine, -cosine)]
    which = quarters.astype(np.int64) % 4
    x = np.choose(which, [pair[0] for pair in turned])
    y = np.choose(which, [pair[1] for pair in turned])
    return np.stack([radius * x, radius * y], axis=-1).reshape(-1)


def uniform_noise(
    size: Sequence[int], *, seed: int, offset: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """The uniform numbers in (0, 1) of a tensor of ``size``, which float32 would hold as well.

    Args:
        size: the tensor's shape.
        seed, offset: the random state, ints modulo 2^64.
        device: where the drawn noise is moved to; default: the CPU.

    Returns:
        A float64 tensor of shape ``size``.
    """
    count = math.prod(size)
    u = uniforms_of_words(noise_words(count, seed, offset))
    return torch.as_tensor(u, device=device).reshape(tuple(size))


def normal_noise(
    size: Sequence[int], *, seed: int, offset: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """The standard normal numbers of a tensor of ``size``, from pairs of uniform ones.

    Args:
        size: the tensor's shape.
        seed, offset: the random state, ints modulo 2^64.
        device: where the drawn noise is moved to; default: the CPU.

    Returns:
        A float64 tensor of shape ``size``.
    """
    count = math.prod(size)
    z = normals_of_words(noise_words(count + count % 2, seed, offset))[:count]
    return torch.as_tensor(z, device=device).reshape(tuple(size))


def gaussian_dropout(input: Tensor, p: float = 0.5, *, seed: int, offset: int = 0) -> Tensor:
    """``input (1 + sqrt(p / (1 - p)) z)`` with standard normal numbers z, as in training.

    Args:
        input: floating point tensor of any shape.
        p: drop probability in [0, 1) of the dropout that it stands for.
        seed, offset: the random state, ints modulo 2^64.

    Returns:
        A tensor of the shape of ``input``; gradients are plain autograd's.
    """
    z = normal_noise(input.shape, seed=seed, offset=offset, device=input.device)
    return input * (1 + math.sqrt(p / (1 - p)) * z.to(input.dtype))


def gaussian_noise(
    mean: Tensor, variance: Tensor, *, eps: float = 1e-8, seed: int, offset: int = 0
) -> Tensor:
    """``mean + sqrt(variance + eps) z`` with standard normal numbers z.

    Args:
        mean: floating point tensor of any shape.
        variance: tensor of the shape and dtype of ``mean``.
        eps: added to the variance.
        seed, offset: the random state, ints modulo 2^64.

    Returns:
        A tensor of the shape of ``mean``; gradients are plain autograd's.
    """
    z = normal_noise(mean.shape, seed=seed, offset=offset, device=mean.device)
    return mean + (variance + eps).sqrt() * z.to(mean.dtype)


def concrete_dropout(
    input: Tensor,
    logit_p: Tensor,
    temperature: float = 0.1,
    *,
    broadcast_dims: Sequence[int] = (),
    seed: int,
    offset: int = 0,
) -> Tensor:
    """``input (1 - z) / (1 - p)`` with a relaxed mask z, as in training.

    z = sigmoid((log p - log(1 - p) + log u - log(1 - u)) / t) with uniform numbers u. log p - log(1
    - p) is the logit itself, and 1 - sigmoid(x) = sigmoid(-x).

    Args:
        input: floating point tensor of any shape.
        logit_p: tensor of one element, log(p / (1 - p)).
        temperature: t, above 0.
        broadcast_dims: dimensions along which the mask is shared: u has size 1 there.
        seed, offset: the random state, ints modulo 2^64.

    Returns:
        A tensor of the shape of ``input``; gradients are plain autograd's.
    """
    shared = {dim % input.dim() for dim in broadcast_dims}
    shape = [1 if dim in shared else size for dim, size in enumerate(input.shape)]
    u = uniform_noise(shape, seed=seed, offset=offset, device=input.device)
    logit_u = (u.log() - (1 - u).log()).to(input.dtype)
    logit = logit_p.to(input.dtype).reshape(())
    one_less_z = torch.sigmoid(-(logit + logit_u) / temperature)
    one_less_p = torch.sigmoid(-logit)
    return input * one_less_z / one_less_p
