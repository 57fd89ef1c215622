"""Results of the DropBlock operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_dropout._fake.common import Fakes, new_rng_state


def _mask(
    input: Tensor,
    rng_state: Tensor,
    block: list[int],
    gamma: float,
    share_channels: bool,
    scales: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    bits = input.shape[0] if share_channels else input.shape[0] * input.shape[1]
    for size in input.shape[2:]:
        bits = bits * size
    words = ((bits + 127) // 128 + 1) * 4
    return (
        input.new_empty((words,), dtype=torch.int32),
        input.new_empty((scales,), dtype=torch.float64),
    )


def _drawn_mask(
    input: Tensor, generator: torch.Generator | None, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    rng_state = new_rng_state(input)
    return (*_mask(input, rng_state, *settings), rng_state)


def _drop_block(input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(input)


def _drop_block_in_place(input: Tensor, *_: Any) -> None:
    return None


FAKES: Fakes = {
    "drop_block_mask": _mask,
    "drop_block_mask.generator": _drawn_mask,
    "drop_block": _drop_block,
    "drop_block_": _drop_block_in_place,
}
