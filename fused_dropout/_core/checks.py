"""Argument checks that several operators share."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# Those that torch computes with; its operators do not implement the other dtypes of integers.
_INT_DTYPES = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def check_probability(p: Any, name: str = "p") -> float:
    """``p`` as a float in [0, 1]; takes what torch's dropout takes, and raises as it does."""
    if type(p) is float and 0.0 <= p <= 1.0:  # the common case, which every call pays for
        return p
    value = as_float(p.item() if _is_plain_scalar(p) else p, name)
    if not 0.0 <= value <= 1.0:  # false for NaN too
        raise ValueError(
            f"{name}, the drop probability, has to be between 0 and 1, but got {shown(p)}"
        )
    return value


def _is_plain_scalar(value: Any) -> bool:
    """Whether it is a tensor that torch takes for a number: no dimensions, real, no gradient.

    On the meta device a tensor has no value.
    """
    is_scalar = isinstance(value, Tensor) and value.dim() == 0 and value.device.type != "meta"
    return is_scalar and not value.is_complex() and not value.requires_grad


def as_float(value: Any, name: str) -> float:
    """A real number as a float: infinite where it is an int beyond the range of floats."""
    if not isinstance(value, (float, numbers.Real, np.bool_)):
        raise TypeError(f"{name} must be a float, got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]


def shown(value: Any) -> str:
    """``value`` for a message; Python writes no ints of more than some thousand digits."""
    is_long = isinstance(value, int) and abs(value) >= 10**30
    return "an int of more than 30 digits" if is_long else str(value)


def check_number(
    value: Any, name: str, *, above: float | None = None, at_least: float | None = None
) -> float:
    """``value`` as a finite float, in the range that is asked for."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a float, got bool")
    number = as_float(value, name)
    too_low = (above is not None and number <= above) or (
        at_least is not None and number < at_least
    )
    if too_low or not -math.inf < number < math.inf:  # torch.compile follows no math.isfinite
        bound = "" if above is None else f", above {above:g}"
        bound += "" if at_least is None else f", at least {at_least:g}"
        raise ValueError(f"{name} must be finite{bound}; got {shown(value)}")
    return number


def check_choice(value: Any, name: str, allowed: Collection[str]) -> None:
    """``value`` is one of ``allowed``."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def check_mask_mode(value: Any, modes: Collection[str], sharing: str) -> None:
    """``value`` is one of ``modes`` or an int of at least 1: how many ``sharing`` have one mask."""
    if isinstance(value, str) and value in modes:
        return
    try:
        count = as_int(value, "mask")
    except TypeError:
        count = 0
    if count < 1:
        raise ValueError(
            f"mask must be {', '.join(map(repr, modes))} or an int >= 1 ({sharing} that share a "
            f"mask), got {value!r}"
        )


def check_module(value: Any, name: str) -> None:
    """``value`` is a module."""
    if not isinstance(value, torch.nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {type(value).__name__}")


def check_bool(value: Any, name: str) -> bool:
    """``value`` if it is a bool: a number given by position for another argument is none."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {value!r}")
    return value


def as_int(value: Any, name: str) -> int:
    """``value`` as an int; NumPy's ints count, bools do not."""
    if type(value) is int:  # all that torch.compile can follow without fixing the value
        return value
    try:
        if not isinstance(value, (bool, Tensor)):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{name} must be an int, got {type(value).__name__}")


def check_int(value: Any, name: str, low: int, high: int | None = None) -> int:
    """``value`` as an int in [low, high], or of at least ``low``."""
    value = as_int(value, name)
    if high is None and value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")
    if high is not None and not low <= value <= high:
        raise ValueError(f"{name} must be in [{low}, {high}], got {value}")
    return value


def as_ints(values: Any, name: str) -> tuple[int, ...]:
    """``values``, an int or a sequence of ints, as a tuple."""
    given = values if isinstance(values, Sequence) and not isinstance(values, str) else (values,)
    return tuple(as_int(value, f"{name}'s elements") for value in given)


def as_shape(shape: Any, name: str) -> tuple[int, ...]:
    """``shape``, an int or several, at least 0 and with a product that an int64 holds."""
    is_int = hasattr(shape, "__index__") and not hasattr(shape, "__len__")
    try:
        numbers = tuple(operator.index(size) for size in ((shape,) if is_int else shape))
    except TypeError:
        wanted = f"{name} must be an int or a sequence of ints"
        raise TypeError(f"{wanted}, got {shape!r}") from None
    rows = math.prod(numbers[:-1])
    if any(size < 0 for size in numbers) or max(rows, math.prod(numbers)) >= 2**63:
        raise ValueError(f"{name} must be ints >= 0, their product below 2^63, got {shape!r}")
    return numbers


def as_dims(dims: Any, name: str, count: int) -> tuple[int, ...]:
    """``dims``, a dimension or several of a tensor that has ``count``, as sorted ints >= 0."""
    numbers = as_ints(dims, name)
    for dim in numbers:
        if not -count <= dim < count:
            raise IndexError(f"{name} must be in [{-count}, {count - 1}], got {dim}")
    found = sorted({dim % count for dim in numbers})
    if len(found) < len(numbers):
        raise ValueError(f"{name} must name each dimension once, got {dims}")
    return tuple(found)


def check_dense(tensor: Any, name: str) -> None:
    """``tensor`` is a Tensor that is neither sparse nor nested."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
    if tensor.layout is not torch.strided or tensor.is_nested:
        kind = "a nested tensor" if tensor.is_nested else f"layout {tensor.layout}"
        raise RuntimeError(f"{name} must be a dense (torch.strided) tensor, got {kind}")


def check_dense_or_none(tensor: Any, name: str) -> None:
    """The same for an operand that need not be given."""
    if tensor is not None:
        check_dense(tensor, name)


def check_probability_and_input(p: Any, input: Any) -> float:
    """``p`` as a float, ``input`` dense; in torch's order: the same mistake is reported first."""
    p = check_probability(p)
    check_dense(input, "input")
    return p


def check_float_tensor(tensor: Tensor, name: str) -> None:
    """``tensor`` has a dtype that the kernels compute in; raises what torch's operators raise."""
    if tensor.dtype not in FLOAT_DTYPES:
        error = RuntimeError if tensor.dtype in _INT_DTYPES else NotImplementedError
        allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in FLOAT_DTYPES)
        raise error(f"{name} must have a dtype of {allowed}; got {tensor.dtype}")


def check_number_tensor(tensor: Tensor, name: str) -> None:
    """``tensor`` has a dtype of real numbers, or bool, that torch's operators implement."""
    if tensor.dtype not in FLOAT_DTYPES + _INT_DTYPES:
        allowed = ", ".join(str(d).removeprefix("torch.") for d in FLOAT_DTYPES + _INT_DTYPES)
        raise NotImplementedError(f"{name} must have a dtype of {allowed}; got {tensor.dtype}")


def check_same(tensor: Tensor, name: str, other: Tensor, other_name: str) -> None:
    """``tensor`` has the dtype and device of ``other``."""
    if tensor.dtype != other.dtype:
        raise RuntimeError(
            f"{name} must have the dtype of {other_name}, {other.dtype}; got {tensor.dtype}"
        )
    check_same_device(tensor, name, other, other_name)


def check_same_device(tensor: Tensor, name: str, other: Tensor, other_name: str) -> None:
    """``tensor`` is on the device of ``other``."""
    if tensor.device != other.device:
        raise RuntimeError(
            f"{name} must be on the device of {other_name}, {other.device}; got {tensor.device}"
        )


def check_like(
    tensor: Tensor, name: str, other: Tensor, other_name: str, shape: Sequence[int]
) -> None:
    """``tensor`` has the dtype and device of ``other``, and ``shape``."""
    check_same(tensor, name, other, other_name)
    check_shape(tensor, name, shape)


def check_shape(tensor: Tensor, name: str, shape: Sequence[int]) -> None:
    """``tensor`` has ``shape``."""
    if tuple(tensor.shape) != tuple(shape):
        raise RuntimeError(f"{name} must have shape {list(shape)}, got {list(tensor.shape)}")
