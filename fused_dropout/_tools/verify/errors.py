"""How far a result may be from the truth, and how far it is.

The truth is in float64, on the same operands. Our largest error may be twice torch's own in the
dtype under test, plus a floor of a few units in the last place of the largest value
(flash-attention's criterion).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def error_bound(torchs: list[Tensor], truth: Tensor, floor_ulps: int) -> float:
    """The largest error that passes, given what torch itself makes of it in one or more ways."""
    own = max(largest(result.double() - truth) for result in torchs)
    return 2 * own + floor_ulps * torch.finfo(torchs[0].dtype).eps * largest(truth)


def error_ratio(ours: Tensor, truth: Tensor, bound: float, dtype: torch.dtype) -> float:
    """Our largest error by its bound; infinite for another dtype or shape."""
    if ours.dtype != dtype or ours.shape != truth.shape:
        return math.inf
    error = largest(ours.double() - truth)
    return error / bound if bound > 0 else (0.0 if error == 0 else math.inf)


def largest(tensor: Tensor) -> float:
    """The largest absolute value; 0 for no elements."""
    return float(tensor.abs().max()) if tensor.numel() else 0.0
