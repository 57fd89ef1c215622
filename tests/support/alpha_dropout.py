"""Alpha dropout's numbers, by the formulas of its paper."""

from __future__ import annotations

import math

import torch

from fused_dropout import reference

SELU_FLOOR = float(torch.nn.functional.selu(torch.tensor(-math.inf, dtype=torch.float64)))


def functional_alpha(p: float) -> tuple[float, float]:
    """a and b of alpha dropout, which gives a * input + b where an element is kept."""
    q = reference.keep_rate(p)
    a = (q + SELU_FLOOR**2 * (1 - q) * q) ** -0.5
    return a, -a * (1 - q) * SELU_FLOOR
