"""Modules that drop_path_skip runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def square(x: Tensor) -> Tensor:
    return x * x


class Seen:
    """A module that notes how many samples it was given."""

    def __init__(self, module: Callable[..., Any] = square) -> None:
        self.module = module
        self.samples: list[int] = []

    def __call__(self, *inputs: Any) -> Any:
        self.samples.append(len(inputs[0]))
        return self.module(*inputs)
