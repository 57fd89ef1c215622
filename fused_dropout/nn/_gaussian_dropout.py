"""The Gaussian dropout layer."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_dropout._core import checks
from fused_dropout.functional._gaussian_dropout import check_gaussian_rate, gaussian_dropout


class GaussianDropout(torch.nn.Module):
    """Multiplies by noise of mean 1 and variance ``p / (1 - p)`` in training.

    That is the variance of dropout's noise. In evaluation the input is returned as it is. The layer
    calls :func:`fused_dropout.functional.gaussian_dropout`.

    Source: Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from Overfitting",
    JMLR 2014, section 10.

    Args:
        p: the drop probability of the dropout that it stands for, in [0, 1).
        inplace: write the result into the input.

    Shape:
        input: any; output: the same.

    Raises:
        ValueError: p out of range.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that :func:`fused_dropout.functional.gaussian_dropout`
            refuses.
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
