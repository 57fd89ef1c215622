"""How far from the truth a result may be: twice as far as torch's own, and some rounding."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from support.tensors import relative_error, with_gradients


def own_and_truth(
    op: Callable[..., Tensor], operands: tuple[Tensor, ...], **kwargs: object
) -> tuple[list[Tensor], list[Tensor]]:
    """`with_gradients` of a reference on the CPU: in the operands' dtype, and in float64.

    On the CPU, so that one bound holds for every device.
    """
    here = tuple(tensor.cpu() for tensor in operands)
    in_float64 = tuple(tensor.double() for tensor in here)
    return with_gradients(op, here, **kwargs), with_gradients(op, in_float64, **kwargs)


def is_accurate(
    ours: Tensor, own: Tensor, truth: Tensor, ulps: int = 2, other_error: float = 0.0
) -> bool:
    """Our error is at most twice that of `own`, in the same dtype, plus some units of rounding.

    For float64 itself the truth is no better than what is judged, hence more units there.
    `other_error` is the relative error of another computation by torch that counts as its own.
    """
    assert (ours.dtype, ours.shape) == (own.dtype, truth.shape)
    units = 16 if own.dtype == torch.float64 else ulps
    bound = 2 * max(relative_error(own, truth), other_error) + units * torch.finfo(own.dtype).eps
    return relative_error(ours.cpu(), truth) <= bound
