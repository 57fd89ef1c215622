"""The linear layer whose input is dropped."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_dropout._core import checks
from fused_dropout.functional import _dropout_linear as functional


class DropoutLinear(torch.nn.Linear):
    """``Linear(Dropout(input))`` in one layer, which keeps no dropped copy of its input.

    Replaces :class:`torch.nn.Linear` behind a :class:`torch.nn.Dropout`: same parameters,
    initialisation and state_dict as the linear layer's. In evaluation it is the plain linear layer.
    The layer calls :func:`fused_dropout.functional.dropout_linear`.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, whose
    adapters drop their input; dropout itself: Srivastava et al., JMLR 2014.

    Args:
        in_features: size of the input's last dimension.
        out_features: size of the output's last dimension.
        bias: whether there is a bias, which is not dropped.
        p: drop probability in [0, 1].
        device: of the parameters; default: torch's default device.
        dtype: of the parameters; default: torch's default dtype.

    Shape:
        input: ``[..., in_features]``; output: ``[..., out_features]``.

    Raises:
        ValueError: p out of range.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that :func:`fused_dropout.functional.dropout_linear`
            refuses.

    Example:
        >>> from fused_dropout import nn
        >>> adapter = nn.DropoutLinear(2048, 16, bias=False, p=0.1)  # A of a LoRA adapter
        >>> adapter(torch.ones(2, 2048)).shape
        torch.Size([2, 16])
    """

    drops_in_training = True  # for fused_dropout.mc_dropout

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        p: float = 0.5,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        checks.check_bool(bias, "bias")
        p = checks.check_probability(p)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        return functional.dropout_linear(input, self.weight, self.bias, self.p, self.training)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}"
