"""The layers of torchvision.ops."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fused_dropout import nn as ours


class TorchvisionDropBlock2d(ours.DropBlock2d):
    """torchvision's form for maps that are smaller than a block: the block stays a square."""

    def forward(self, input: Tensor) -> Tensor:
        return self._drop(input, min(self.block_size, *input.shape[2:]))


class TorchvisionDropBlock3d(ours.DropBlock3d):
    """torchvision's form for maps that are smaller than a block: the block stays a cube."""

    def forward(self, input: Tensor) -> Tensor:
        return self._drop(input, min(self.block_size, *input.shape[2:]))


def _stochastic_depth(layer: Any) -> nn.Module:
    return ours.StochasticDepth(layer.p, layer.mode)


def _drop_block2d(layer: Any) -> nn.Module:
    return TorchvisionDropBlock2d(layer.p, layer.block_size, bool(layer.inplace), layer.eps)


def _drop_block3d(layer: Any) -> nn.Module:
    return TorchvisionDropBlock3d(layer.p, layer.block_size, bool(layer.inplace), layer.eps)


CONVERTERS = {
    ("torchvision", "StochasticDepth"): _stochastic_depth,
    ("torchvision", "DropBlock2d"): _drop_block2d,
    ("torchvision", "DropBlock3d"): _drop_block3d,
}
