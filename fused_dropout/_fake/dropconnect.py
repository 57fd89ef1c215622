"""Results of the DropConnect operators."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_dropout._fake.common import Fakes, new_rng_state

_STORED_OUTS_MULTIPLE = 8  # kStoredOutsMultiple in csrc/common/params.h


def _mask_bits(
    rng_state: Tensor, masks: int, out_features: int, in_features: int, p: float
) -> Tensor:
    multiple = _STORED_OUTS_MULTIPLE
    outs = (out_features + multiple - 1) // multiple * multiple
    return rng_state.new_empty(((in_features + 127) // 128, masks, outs, 4), dtype=torch.int32)


def _drawn_mask_bits(
    weight: Tensor, generator: torch.Generator | None, masks: int, p: float
) -> tuple[Tensor, Tensor]:
    rng_state = new_rng_state(weight)
    out_features, in_features = weight.shape
    return _mask_bits(rng_state, masks, out_features, in_features, p), rng_state


def _linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rng_state: Tensor,
    p: float,
    rows_per_mask: int,
    rescale: bool,
    mask_bits: Tensor | None,
) -> Tensor:
    return input.new_empty((input.shape[0], weight.shape[0]))


def _drawn_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    generator: torch.Generator | None,
    p: float,
    rows_per_mask: int,
    rescale: bool,
) -> tuple[Tensor, Tensor]:
    return input.new_empty((input.shape[0], weight.shape[0])), new_rng_state(input)


def _d_input(
    grad_output: Tensor,
    weight: Tensor,
    rng_state: Tensor,
    p: float,
    rows_per_mask: int,
    rescale: bool,
    mask_bits: Tensor | None,
) -> Tensor:
    return grad_output.new_empty((grad_output.shape[0], weight.shape[1]))


def _d_weight(
    grad_output: Tensor,
    input: Tensor,
    rng_state: Tensor,
    p: float,
    rows_per_mask: int,
    rescale: bool,
    mask_bits: Tensor | None,
) -> Tensor:
    return grad_output.new_empty((grad_output.shape[1], input.shape[1]))


def _d_both(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    rng_state: Tensor,
    p: float,
    rows_per_mask: int,
    rescale: bool,
    mask_bits: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return (
        grad_output.new_empty((grad_output.shape[0], weight.shape[1])),
        grad_output.new_empty((grad_output.shape[1], input.shape[1])),
    )


def _d_bias(
    grad_output: Tensor, rng_state: Tensor, p: float, rows_per_mask: int, rescale: bool
) -> Tensor:
    return grad_output.new_empty((grad_output.shape[1],))


FAKES: Fakes = {
    "dropconnect_mask_bits": _mask_bits,
    "dropconnect_mask_bits.generator": _drawn_mask_bits,
    "dropconnect_linear": _linear,
    "dropconnect_linear.generator": _drawn_linear,
    "dropconnect_linear_d_input": _d_input,
    "dropconnect_linear_d_weight": _d_weight,
    "dropconnect_linear_d_both": _d_both,
    "dropconnect_linear_d_bias": _d_bias,
}
