"""The DropConnect layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_dropout._core import checks
from fused_dropout._core.rates import CONVENTIONS, Convention
from fused_dropout.functional import _dropconnect as functional


class DropConnectLinear(torch.nn.Linear):
    r"""``torch.nn.Linear`` with DropConnect: same parameters, initialisation and state_dict.

    In training every weight and bias is dropped with probability ``p``, anew for every example
    (see :func:`fused_dropout.functional.dropconnect_linear`); in evaluation it is the plain layer.

    Source: Wan et al., "Regularization of Neural Networks using DropConnect", ICML 2013.

    Args:
        in_features, out_features, bias, device, dtype: as :class:`torch.nn.Linear`.
        p: drop probability in [0, 1].
        mask: ``"row"``, ``"example"``, ``"batch"`` or an int, the rows that share a mask.
        convention: ``"inverted"`` (divide by the keep rate in training) or ``"paper"`` (multiply by
            it in evaluation).
        mask_storage: ``"auto"``, ``"regenerate"`` or ``"packed"``.

    Shape:
        input ``[..., in_features]``, output ``[..., out_features]``.

    Raises:
        ValueError: p, mask, convention or mask_storage out of range.
        TypeError: an argument of the wrong type.
        RuntimeError: as the functional form, when called.
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
