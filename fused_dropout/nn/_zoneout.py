"""Zoneout as a layer between the steps of a recurrent cell."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_dropout import functional
from fused_dropout._core import checks


class Zoneout(torch.nn.Module):
    """Leaves each element of a recurrent state as it was with probability ``p``.

    It is called with the state that the cell gives and the one before it. In training it chooses
    between their elements; in evaluation it returns the expectation, ``q * input + (1 - q) *
    previous``, where q is the rate of new elements. The layer calls
    :func:`fused_dropout.functional.zoneout`, which says what the mask is.

    Source: Krueger et al., "Zoneout: Regularizing RNNs by Randomly Preserving Hidden Activations",
    ICLR 2017 (which takes p = 0.5 for the cells and 0.05 for the hidden units of an LSTM on
    characters).

    Args:
        p: probability in [0, 1] of the previous value.

    Shape:
        input and previous: any, the same; output: the same, in the input's memory format.

    Raises:
        ValueError: p out of range.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that :func:`fused_dropout.functional.zoneout` refuses.

    Example:
        >>> from fused_dropout import nn
        >>> cell, zoneout_h, zoneout_c = torch.nn.LSTMCell(4, 8), nn.Zoneout(0.05), nn.Zoneout(0.5)
        >>> h = c = torch.zeros(2, 8)
        >>> for x in torch.randn(5, 2, 4):
        ...     new_h, new_c = cell(x, (h, c))
        ...     h, c = zoneout_h(new_h, h), zoneout_c(new_c, c)
    """

    drops_in_training = True  # for fused_dropout.mc_dropout

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = checks.check_probability(p)

    def forward(self, input: Tensor, previous: Tensor) -> Tensor:
        return functional.zoneout(input, previous, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"
