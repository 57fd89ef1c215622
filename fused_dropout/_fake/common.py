"""What the fakes of all operators share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Fakes = dict[str, Callable[..., Any]]  # by the operator's name, with its overload if it has one


def new_rng_state(like: Tensor) -> Tensor:
    """An rng_state on the device of `like`."""
    return like.new_empty((2,), dtype=torch.int64)
