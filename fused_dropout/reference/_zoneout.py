"""Zoneout: the elements that the mask drops keep their previous values."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_dropout.reference._masks import mask


def zoneout(
    input: Tensor, previous: Tensor, p: float = 0.5, *, seed: int, offset: int = 0
) -> Tensor:
    """``input`` where the mask keeps an element, else ``previous``, as in training.

    Args:
        input: floating point tensor of any shape: the new state.
        previous: tensor of the shape and dtype of ``input``: the state before.
        p: probability in [0, 1] of an element to keep its previous value.
        seed, offset: the random state, ints modulo 2^64.

    Returns:
        A tensor of the shape of ``input``; gradients are plain autograd's.
    """
    kept = mask(input.numel(), p, seed=seed, offset=offset, device=input.device)
    return torch.where(kept.view(input.shape), input, previous)
