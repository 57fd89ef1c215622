"""What linear layers with masks share: they and their gradients are products of two operands."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_dropout._ops._differentiable import Differentiable, Settings, Tensors, total


def check_layer(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """What a layer's fake kernel checks; who calls an operator by itself has checked nothing."""
    torch._check(
        input.shape[-1] == weight.shape[1],
        lambda: f"weight must have shape [.., {input.shape[-1]}], got {list(weight.shape)}",
    )
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.device != input.device:
            raise RuntimeError(f"{name} must be on {input.device}, got {tensor.device}")


def product_rule(
    op: type[Differentiable], saved: Tensors, settings: Settings, tangents: Tensors
) -> Any:
    """The tangent of ``op``, which is linear in each of its two inputs; None without tangents.

    ``saved`` are the inputs, and the tensors of the random state or the masks.
    """
    first, second, *masks = saved
    of_first, of_second = tangents
    terms = []
    if of_first is not None:
        terms.append(op.call((of_first, second, *masks), settings))
    if of_second is not None:
        terms.append(op.call((first, of_second, *masks), settings))
    return total(terms) if terms else None
