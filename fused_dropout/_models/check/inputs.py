"""A model's arguments, as a user gives them in one value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def split_inputs(example_inputs: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The positional arguments and the keyword arguments."""
    if example_inputs is None:
        return (), {}
    if isinstance(example_inputs, Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        return (), example_inputs
    if isinstance(example_inputs, (tuple, list)):
        return example_inputs, {}
    raise TypeError(
        "example_inputs must be a Tensor, a tuple or list of arguments, a dict of keyword "
        f"arguments, or None, got {type(example_inputs).__name__}"
    )
