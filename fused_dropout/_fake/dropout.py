"""Results of the dropout operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_dropout._fake.common import Fakes, new_rng_state


def _dropout(input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(input)


def _drawn_dropout(input: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(input), new_rng_state(input)


def _dropout_in_place(input: Tensor, *_: Any) -> None:
    return None


def _drawn_dropout_in_place(input: Tensor, *_: Any) -> Tensor:
    return new_rng_state(input)


FAKES: Fakes = {
    "dropout": _dropout,
    "dropout.generator": _drawn_dropout,
    "dropout_": _dropout_in_place,
    "dropout_.generator": _drawn_dropout_in_place,
}
