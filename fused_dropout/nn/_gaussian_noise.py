"""The layer that adds Gaussian noise."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_dropout._core import checks
from fused_dropout.functional import gaussian_noise

LEAST, MOST = 1e-18, 1e18  # whose squares a float32 holds


class GaussianNoise(torch.nn.Module):
    """Adds normal noise of mean 0 and standard deviation ``std`` in training.

    In evaluation the input is returned as it is. The noise is that of
    :func:`fused_dropout.functional.gaussian_noise`, new in every call. Named as in Keras; to
    multiply by noise is :class:`fused_dropout.nn.GaussianDropout`.

    Source: Bishop, "Training with Noise is Equivalent to Tikhonov Regularization", Neural
    Computation 1995.

    Args:
        std: standard deviation of the noise in units of the input, 0 or between 1e-18 and 1e18
            (Keras: ``stddev``).

    Shape:
        input: any; output: the same.

    Raises:
        ValueError: std out of range.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that :func:`fused_dropout.functional.gaussian_noise`
            refuses.

    Example:
        >>> from fused_dropout import nn
        >>> layer = nn.GaussianNoise(0.1)
        >>> layer(torch.ones(4)).shape
        torch.Size([4])
        >>> layer.eval()(torch.ones(4))
        tensor([1., 1., 1., 1.])
    """

    drops_in_training = True  # for fused_dropout.mc_dropout

    def __init__(self, std: float) -> None:
        super().__init__()
        self.std = checks.check_number(std, "std", at_least=0.0)
        if self.std != 0.0 and not LEAST <= self.std <= MOST:
            raise ValueError(f"std must be 0 or in [{LEAST:g}, {MOST:g}], got {std}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.std == 0.0:
            return input
        # The variance is eps alone, a float: in half precision std keeps all its digits.
        return gaussian_noise(input, torch.zeros_like(input), eps=self.std * self.std)

    def extra_repr(self) -> str:
        return f"std={self.std}"
