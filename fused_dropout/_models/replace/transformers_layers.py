"""The layers of Hugging Face transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fused_dropout import nn as ours
from fused_dropout._core import checks
from fused_dropout._core.rates import CONVENTIONS, INVERTED, Convention
from fused_dropout.functional import _dropconnect as functional


class DropConnectConv1D(nn.Module):
    """transformers' Conv1D, a linear layer whose weight is ``[in, out]``, with DropConnect.

    Args:
        nx: size of the input's last dimension.
        nf: size of the output's last dimension.
        p: drop probability in [0, 1].
        mask, convention, mask_storage: as :class:`fused_dropout.nn.DropConnectLinear`.

    The parameters are the converter's to set.
    """

    drops_in_training = True  # for fused_dropout.mc_dropout
    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        nx: int,
        nf: int,
        p: float = 0.5,
        *,
        mask: functional.MaskMode | int = "example",
        convention: Convention = "inverted",
        mask_storage: functional.MaskStorage = "auto",
    ) -> None:
        super().__init__()
        self.nx, self.nf = nx, nf
        self.p = checks.check_probability(p)
        checks.check_mask_mode(mask, functional.MASK_MODES, "rows")
        checks.check_choice(convention, "convention", CONVENTIONS)
        checks.check_choice(mask_storage, "mask_storage", functional.MASK_STORAGES)
        self.mask = mask
        self.convention = convention
        self.mask_storage = mask_storage

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.convention == INVERTED:  # the numbers of Conv1D, to the bit
            flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
            return flat.view(*x.shape[:-1], self.nf)
        return functional.dropconnect_linear(
            x,
            self.weight.t(),
            self.bias,
            self.p,
            self.training,
            mask=self.mask,
            convention=self.convention,
            mask_storage=self.mask_storage,
        )

    def extra_repr(self) -> str:
        return f"nf={self.nf}, nx={self.nx}, p={self.p}, mask={self.mask!r}"


def is_conv1d(layer: nn.Module) -> bool:
    """Whether it is transformers' Conv1D and no subclass of it."""
    cls = type(layer)
    return cls.__name__ == "Conv1D" and cls.__module__.partition(".")[0] == "transformers"


def _drop_path(layer: Any) -> nn.Module | str:
    """BeitDropPath, ConvNextDropPath, SwinDropPath and so on: one layer under many names."""
    if not isinstance(getattr(layer, "drop_prob", None), (int, float)):
        return "its drop_prob is no number"
    return ours.DropPath(layer.drop_prob)


def _stable_dropout(layer: Any) -> nn.Module | str:
    if layer.context_stack is not None:
        return "init_context was called, so that it keeps its masks for other calls"
    return ours.Dropout(layer.drop_prob)


CONVERTERS = {
    ("transformers", "*DropPath"): _drop_path,
    ("transformers", "StableDropout"): _stable_dropout,
}
