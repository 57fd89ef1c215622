"""The Gaussian dropout layer."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_dropout._core import checks
from fused_dropout.functional._gaussian_dropout import check_gaussian_rate, gaussian_dropout


class GaussianDropout(torch.nn.Module):
    """Multiplies by noise of mean 1 and variance ``p / (1 - p)`` in training; else the identity.

    Source: Srivastava et al. 2014, section 10; see
    :func:`fused_dropout.functional.gaussian_dropout`.

    Args:
        p: the drop probability of the dropout that it stands for, in [0, 1).
        inplace: write the result into the input.

    Shape:
        input and output: any, the same.

    Raises:
        ValueError: p out of range.
        TypeError: p is no number, or inplace no bool.
    """

    drops_in_training = True  # for fused_dropout.mc_dropout

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        self.p = check_gaussian_rate(p)
        self.inplace = checks.check_bool(inplace, "inplace")

    def forward(self, input: Tensor) -> Tensor:
        return gaussian_dropout(input, self.p, self.training, self.inplace)

    def extra_repr(self) -> str:
        return f"p={self.p}, inplace={self.inplace}"
