"""The DropBlock layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fused_dropout._core import checks
from fused_dropout.functional import _drop_block as functional
from fused_dropout.nn._package_name import ShowsPackage


class _DropBlock(ShowsPackage, torch.nn.Module):
    """What the layers share; `_dims` is the number of spatial dimensions."""

    drops_in_training = True  # for fused_dropout.mc_dropout
    _dims: int

    def __init__(
        self,
        p: float,
        block_size: int | Sequence[int],
        inplace: bool = False,
        eps: float = 1e-6,
        *,
        normalize: functional.Normalization = "batch",
        share_channels: bool = False,
        gamma: functional.Gamma = "paper",
        gamma_scale: float = 1.0,
        with_noise: bool = False,
    ) -> None:
        super().__init__()
        checks.check_probability(p)
        functional.check_block_size(block_size, self._dims)
        functional.Options(
            inplace, eps, normalize, share_channels, gamma, gamma_scale, with_noise
        ).check()
        self.p = p
        self.block_size = block_size
        self.inplace = inplace
        self.eps = eps
        self.normalize = normalize
        self.share_channels = share_channels
        self.gamma = gamma
        self.gamma_scale = gamma_scale
        self.with_noise = with_noise

    def forward(self, input: Tensor) -> Tensor:
        function = (functional.drop_block1d, functional.drop_block2d, functional.drop_block3d)
        return function[self._dims - 1](
            input,
            self.p,
            self.block_size,
            self.inplace,
            self.eps,
            self.training,
            normalize=self.normalize,
            share_channels=self.share_channels,
            gamma=self.gamma,
            gamma_scale=self.gamma_scale,
            with_noise=self.with_noise,
        )

    def extra_repr(self) -> str:
        shown = f"p={self.p}, block_size={self.block_size}, inplace={self.inplace}"
        if self.normalize != "batch":
            shown += f", normalize={self.normalize!r}"
        if self.share_channels:
            shown += ", share_channels=True"
        if self.gamma != "paper":
            shown += f", gamma={self.gamma!r}"
        if self.gamma_scale != 1.0:
            shown += f", gamma_scale={self.gamma_scale}"
        if self.with_noise:
            shown += ", with_noise=True"
        return shown


class DropBlock1d(_DropBlock):
    """:class:`DropBlock2d` for inputs ``[N, C, L]``."""

    _dims = 1


class DropBlock2d(_DropBlock):
    """Drops square regions of every channel of ``[N, C, H, W]`` in training.

    Equivalent to ``torchvision.ops.DropBlock2d``, whose arguments and distribution it has.
    See :func:`fused_dropout.functional.drop_block2d`.

    Source: Ghiasi, Lin and Le, "DropBlock: A regularization method for convolutional networks",
    NeurIPS 2018.

    Args:
        p: rate of elements to drop, in [0, 1].
        block_size: side of the regions, or one for each dimension.
        inplace: write the result into the input.
        eps: added to the number of kept elements before dividing by it.
        normalize: ``"batch"``, ``"sample"`` or ``"none"``.
        share_channels: all channels of a sample get the same regions.
        gamma: ``"paper"`` or ``"exact"``.
        gamma_scale: gamma is multiplied by it, and limited to 1.
        with_noise: dropped elements become normal noise, and kept ones are not scaled.

    Shape:
        input and output ``[N, C, H, W]``.

    Raises:
        ValueError, TypeError: an argument out of range, or of the wrong type.
    """

    _dims = 2


class DropBlock3d(_DropBlock):
    """:class:`DropBlock2d` for inputs ``[N, C, D, H, W]``."""

    _dims = 3
