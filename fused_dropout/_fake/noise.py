"""Results of the operators on continuous noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fused_dropout._fake.common import Fakes, new_rng_state


def _noise(rng_state: Tensor, size: Sequence[int], dtype: torch.dtype) -> Tensor:
    return rng_state.new_empty(size, dtype=dtype)


def _like_the_first(first: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(first)


def _drawn_like_the_first(first: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(first), new_rng_state(first)


def _in_place(input: Tensor, *_: Any) -> None:
    return None


def _drawn_in_place(input: Tensor, *_: Any) -> Tensor:
    return new_rng_state(input)


def _concrete_dropout_backward(
    grad_output: Tensor, input: Tensor, logit_p: Tensor, rng_state: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(input), torch.empty_like(logit_p)


FAKES: Fakes = {
    "uniform_noise": _noise,
    "normal_noise": _noise,
    "gaussian_dropout": _like_the_first,
    "gaussian_dropout.generator": _drawn_like_the_first,
    "gaussian_dropout_": _in_place,
    "gaussian_dropout_.generator": _drawn_in_place,
    "gaussian_noise": _like_the_first,
    "gaussian_noise.generator": _drawn_like_the_first,
    "gaussian_noise_d_variance": _like_the_first,
    "concrete_dropout": _like_the_first,
    "concrete_dropout.generator": _drawn_like_the_first,
    "concrete_dropout_backward": _concrete_dropout_backward,
}
