"""Operands of functions that stand for F.linear: their checks, and what autocast makes of them."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, is_autocast_enabled

from fused_dropout._core import checks

_Operand = TypeVar("_Operand", Tensor, Tensor | None)


def autocast_dtype(input: Tensor) -> torch.dtype | None:
    """What torch.autocast computes F.linear in on the input's device; None where it is off."""
    kind = input.device.type
    if kind not in ("cpu", "cuda") or not is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def cast_dtype(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """The dtype that an operand has where autocast computes in ``dtype``."""
    eligible = tensor.is_floating_point() and tensor.dtype != torch.float64
    return tensor.dtype if dtype is None or not eligible else dtype


def cast(tensor: _Operand, dtype: torch.dtype | None) -> _Operand:
    """The operand as autocast casts it where it computes in ``dtype``."""
    if tensor is None or dtype is None:
        return tensor
    return tensor.to(cast_dtype(tensor, dtype))


def autocast_operands(
    input: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The operands as torch.autocast casts those of F.linear."""
    dtype = autocast_dtype(input)
    return cast(input, dtype), cast(weight, dtype), cast(bias, dtype)


def check_tensors(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """All of them are dense tensors."""
    checks.check_dense(input, "input")
    checks.check_dense(weight, "weight")
    checks.check_dense_or_none(bias, "bias")


def check_operands(
    input: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype | None = None
) -> None:
    """They are a linear layer's, on one device; the dtype is the input's, or ``dtype`` if given."""
    check_tensors(input, weight, bias)
    checks.check_float_tensor(input, "input")
    checks.check_float_tensor(weight, "weight")
    if dtype is None:
        checks.check_same(weight, "weight", input, "input")
    else:
        checks.check_same_device(weight, "weight", input, "input")
        if weight.dtype != dtype:
            raise RuntimeError(
                f"weight must have the dtype of the product under autocast, {dtype}; got "
                f"{weight.dtype}"
            )
    if weight.dim() != 2:
        raise RuntimeError(
            f"weight must have shape [out_features, in_features], got {list(weight.shape)}"
        )
    if input.dim() == 0 or input.shape[-1] != weight.shape[1]:
        raise RuntimeError(
            f"input must have shape [..., in_features] with in_features = weight.shape[1] = "
            f"{weight.shape[1]}, got {list(input.shape)}"
        )
    if bias is not None:
        checks.check_float_tensor(bias, "bias")
        other, name = (input, "input") if dtype is None else (weight, "weight")
        checks.check_like(bias, "bias", other, name, (weight.shape[0],))
