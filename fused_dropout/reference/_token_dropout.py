"""Dropout of whole tokens: zeroed, or taken out of the sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_dropout.reference._dropout import dropout
from fused_dropout.reference._noise import uniform_noise


def token_dropout(input: Tensor, p: float = 0.5, *, seed: int, offset: int = 0) -> Tensor:
    """Dropout of whole tokens, one mask element each, as in training.

    Args:
        input: ``[..., L, D]``.
        p: drop probability in [0, 1].
        seed, offset: the random state, ints modulo 2^64.

    Returns:
        A tensor of the shape of ``input``; gradients are plain autograd's.
    """
    return dropout(input, p, broadcast_dims=(-1,), seed=seed, offset=offset)


def patch_dropout(
    x: Tensor,
    prob: float = 0.5,
    num_prefix_tokens: int = 1,
    ordered: bool = False,
    *,
    seed: int,
    offset: int = 0,
) -> Tensor:
    """The prefix tokens, and the patches of each sample with the least random numbers.

    Args:
        x: ``[N, num_prefix_tokens + L, ...]``.
        prob: the part of the patches to drop, in [0, 1]; at least one stays.
        num_prefix_tokens: of the first tokens, which always stay.
        ordered: keep the patches in their order, instead of that of their numbers.
        seed, offset: the random state, ints modulo 2^64.

    Returns:
        ``[N, num_prefix_tokens + K, ...]``; gradients are plain autograd's.
    """
    if prob == 0:
        return x
    samples = []
    patches = x.shape[1] - num_prefix_tokens
    noise = uniform_noise((x.shape[0], patches), seed=seed, offset=offset).tolist()
    for sample, keys in zip(x, noise, strict=True):
        stay = sorted(range(patches), key=lambda k: keys[k])[: max(1, int(patches * (1 - prob)))]
        stay = sorted(stay) if ordered else stay
        chosen = [*range(num_prefix_tokens), *(num_prefix_tokens + k for k in stay)]
        samples.append(sample[chosen])
    return torch.stack(samples) if samples else x[:, : num_prefix_tokens + 1]
