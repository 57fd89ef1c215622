"""Results of the transformer epilogue's operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_dropout._fake.common import Fakes, new_rng_state


def _forward(input: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(input)


def _drawn_forward(input: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(input), new_rng_state(input)


def _d_input(grad_output: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(grad_output)


def _d_both(grad_output: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(grad_output), grad_output.new_empty((grad_output.shape[-1],))


FAKES: Fakes = {
    "bias_act_dropout_add": _forward,
    "bias_act_dropout_add.generator": _drawn_forward,
    "bias_act_dropout_add_d_input": _d_input,
    "bias_act_dropout_add_d_both": _d_both,
}
