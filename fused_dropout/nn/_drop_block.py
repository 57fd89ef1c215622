"""The DropBlock layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fused_dropout._core import checks
from fused_dropout.functional import _drop_block as functional
from fused_dropout.nn._package_name import ShowsPackage


class _DropBlock(ShowsPackage, torch.nn.Module):
    """What the layers share; ``_dims`` is the number of spatial dimensions."""

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
        return self._drop(input, self.block_size)

    def _drop(self, input: Tensor, block_size: int | Sequence[int]) -> Tensor:
        function = (functional.drop_block1d, functional.drop_block2d, functional.drop_block3d)
        return function[self._dims - 1](
            input,
            self.p,
            block_size,
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
    """Zeroes runs of elements in every channel of ``[N, C, L]`` in training, scales up the rest.

    The arguments are those of ``torchvision.ops.DropBlock2d``. In evaluation the input is returned
    as it is. The layer calls :func:`fused_dropout.functional.drop_block1d`, which says what is
    dropped.

    Source: Ghiasi, Lin and Le, "DropBlock: A regularization method for convolutional networks",
    NeurIPS 2018.

    Args:
        p: rate of elements to drop, in [0, 1].
        block_size: length of the runs in elements, an int of at least 1 or a sequence of one.
        inplace: write the result into the input.
        eps: added to the number of kept elements before dividing by it; at least 0.
        normalize: kept elements are scaled up by their share of all elements of the ``"batch"`` or
            of each ``"sample"``; ``"none"``: they stay as they are.
        share_channels: all channels of a sample get the same regions.
        gamma: drop probability of a block: ``"paper"`` computes it as the paper, which drops fewer
            elements than p, since blocks overlap; ``"exact"`` so that the expected rate of dropped
            elements is p.
        gamma_scale: that probability is multiplied by it, and limited to 1; at least 0.
        with_noise: dropped elements become normal noise, and kept ones are not scaled.

    Shape:
        input: ``[N, C, L]``; output: the same.

    Raises:
        ValueError: an argument out of range; when called, an input of another number of dimensions.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that :func:`fused_dropout.functional.drop_block1d`
            refuses.
    """

    _dims = 1


class DropBlock2d(_DropBlock):
    """Zeroes rectangles in every channel of ``[N, C, H, W]`` in training, scales up the rest.

    Equivalent to ``torchvision.ops.DropBlock2d``, whose arguments and distribution it has. In
    evaluation the input is returned as it is. The layer calls
    :func:`fused_dropout.functional.drop_block2d`, which says what is dropped.

    Source: Ghiasi, Lin and Le, "DropBlock: A regularization method for convolutional networks",
    NeurIPS 2018.

    Args:
        p: rate of elements to drop, in [0, 1].
        block_size: sides of the rectangles in elements, at least 1: an int, or (height, width).
        inplace: write the result into the input.
        eps: added to the number of kept elements before dividing by it; at least 0.
        normalize: kept elements are scaled up by their share of all elements of the ``"batch"`` or
            of each ``"sample"``; ``"none"``: they stay as they are.
        share_channels: all channels of a sample get the same regions.
        gamma: drop probability of a block: ``"paper"`` computes it as the paper, which drops fewer
            elements than p, since blocks overlap; ``"exact"`` so that the expected rate of dropped
            elements is p.
        gamma_scale: that probability is multiplied by it, and limited to 1; at least 0.
        with_noise: dropped elements become normal noise, and kept ones are not scaled.

    Shape:
        input: ``[N, C, H, W]``; output: the same.

    Raises:
        ValueError: an argument out of range; when called, an input of another number of dimensions.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that :func:`fused_dropout.functional.drop_block2d`
            refuses.
    """

    _dims = 2


class DropBlock3d(_DropBlock):
    """Zeroes boxes in every channel of ``[N, C, D, H, W]`` in training, scales up the rest.

    Equivalent to ``torchvision.ops.DropBlock3d``, whose arguments and distribution it has. In
    evaluation the input is returned as it is. The layer calls
    :func:`fused_dropout.functional.drop_block3d`, which says what is dropped.

    Source: Ghiasi, Lin and Le, "DropBlock: A regularization method for convolutional networks",
    NeurIPS 2018.

    Args:
        p: rate of elements to drop, in [0, 1].
        block_size: sides of the boxes in elements, at least 1: an int, or (depth, height, width).
        inplace: write the result into the input.
        eps: added to the number of kept elements before dividing by it; at least 0.
        normalize: kept elements are scaled up by their share of all elements of the ``"batch"`` or
            of each ``"sample"``; ``"none"``: they stay as they are.
        share_channels: all channels of a sample get the same regions.
        gamma: drop probability of a block: ``"paper"`` computes it as the paper, which drops fewer
            elements than p, since blocks overlap; ``"exact"`` so that the expected rate of dropped
            elements is p.
        gamma_scale: that probability is multiplied by it, and limited to 1; at least 0.
        with_noise: dropped elements become normal noise, and kept ones are not scaled.

    Shape:
        input: ``[N, C, D, H, W]``; output: the same.

    Raises:
        ValueError: an argument out of range; when called, an input of another number of dimensions.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that :func:`fused_dropout.functional.drop_block3d`
            refuses.
    """

    _dims = 3
