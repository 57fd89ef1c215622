"""DropBlock with a mask that has been drawn, and its gradient, which is the same."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_dropout._ops._constant import Constant
from fused_dropout._ops._differentiable import OwnDerivative
from fused_dropout._ops._in_place import InPlace


class DropBlock(OwnDerivative):
    """`input` where the mask keeps it, times the mask's factors, and 0 elsewhere.

    Tensors: input, bits, scale. Settings: share_channels. The packed mask is saved, 1 bit per
    element (or per position, where channels share it): drawing and dilating it again would take
    about as long as the gradient itself.
    """

    name = "drop_block"


class DropBlockInPlace(InPlace):
    """The same, written into the input."""

    pure = DropBlock


def fake_mask(
    input: Tensor,
    rng_state: Tensor,
    block: list[int],
    gamma: float,
    share_channels: bool,
    scales: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Results of drop_block_mask: packed bits and the factors of what is kept."""
    bits = input.shape[0] if share_channels else input.shape[0] * input.shape[1]
    for size in input.shape[2:]:
        bits = bits * size
    words = ((bits + 127) // 128 + 1) * 4
    return (
        input.new_empty((words,), dtype=torch.int32),
        input.new_empty((scales,), dtype=torch.float64),
    )


OPERATORS = (DropBlock, DropBlockInPlace, Constant("drop_block_mask", fake_mask))
