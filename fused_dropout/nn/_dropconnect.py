"""The DropConnect layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_dropout._core import checks
from fused_dropout._core.rates import CONVENTIONS, Convention
from fused_dropout.functional import _dropconnect as functional


class DropConnectLinear(torch.nn.Linear):
    """A linear layer whose every weight and bias is dropped with probability ``p`` in training.

    Replaces :class:`torch.nn.Linear`: same parameters, initialisation and state_dict. Every example
    draws masks of its own, anew in every call; in evaluation it is the plain linear layer. The
    layer calls :func:`fused_dropout.functional.dropconnect_linear`.

    Source: Wan et al., "Regularization of Neural Networks using DropConnect", ICML 2013.

    Args:
        in_features: size of the input's last dimension.
        out_features: size of the output's last dimension.
        bias: whether there is a bias.
        p: drop probability in [0, 1].
        mask: the rows of the input that share a mask: ``"row"`` (none), ``"example"`` (those of one
            item of the first dimension), ``"batch"`` (all), or an int of at least 1: that many
            consecutive rows.
        convention: ``"inverted"`` divides by the keep rate in training; ``"paper"`` multiplies by
            it in evaluation instead.
        mask_storage: how backward gets the masks: ``"regenerate"`` draws them again, ``"packed"``
            keeps 1 bit per connection, ``"auto"`` takes the faster of the two.
        device: of the parameters; default: torch's default device.
        dtype: of the parameters; default: torch's default dtype.

    Shape:
        input: ``[..., in_features]``; output: ``[..., out_features]``.

    Raises:
        ValueError: p, mask, convention or mask_storage out of range.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that :func:`fused_dropout.functional.dropconnect_linear`
            refuses.

    Example:
        >>> from fused_dropout import nn
        >>> layer = nn.DropConnectLinear(8, 4, p=0.5)
        >>> layer(torch.ones(2, 8)).shape
        torch.Size([2, 4])
    """

    drops_in_training = True  # for fused_dropout.mc_dropout

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        p: float = 0.5,
        *,
        mask: functional.MaskMode | int = "example",
        convention: Convention = "inverted",
        mask_storage: functional.MaskStorage = "auto",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        checks.check_bool(bias, "bias")
        p = checks.check_probability(p)
        functional.check_mask_mode(mask)
        checks.check_choice(convention, "convention", CONVENTIONS)
        checks.check_choice(mask_storage, "mask_storage", functional.MASK_STORAGES)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.p = p
        self.mask = mask
        self.convention = convention
        self.mask_storage = mask_storage

    def forward(self, input: Tensor) -> Tensor:
        return functional.dropconnect_linear(
            input,
            self.weight,
            self.bias,
            self.p,
            self.training,
            mask=self.mask,
            convention=self.convention,
            mask_storage=self.mask_storage,
        )

    def extra_repr(self) -> str:
        shown = f"{super().extra_repr()}, p={self.p}, mask={self.mask!r}"
        if self.convention != "inverted":
            shown += f", convention={self.convention!r}"
        if self.mask_storage != "auto":
            shown += f", mask_storage={self.mask_storage!r}"
        return shown
