"""The layers of timm."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fused_dropout import functional
from fused_dropout import nn as ours
from fused_dropout._core import checks
from fused_dropout._core.drop_block_gamma import paper_gamma


class TimmDropBlock2d(nn.Module):
    """timm's DropBlock: blocks may begin outside the map, so that its edges are dropped as often.

    That is DropBlock of a map with a margin as wide as a block reaches, whose margin is cut off:
    the mask is drawn with the margin, in one channel where channels share it.

    Args:
        drop_prob, block_size, gamma_scale, with_noise, inplace, couple_channels, scale_by_keep: as
            timm's layer, from release 1.0.23 on.
    """

    drops_in_training = True  # for fused_dropout.mc_dropout

    def __init__(
        self,
        drop_prob: float = 0.1,
        block_size: int = 7,
        gamma_scale: float = 1.0,
        with_noise: bool = False,
        inplace: bool = False,
        couple_channels: bool = True,
        scale_by_keep: bool = True,
    ) -> None:
        super().__init__()
        self.drop_prob = checks.check_probability(drop_prob, "drop_prob")
        self.block_size = checks.check_int(block_size, "block_size", 1)
        self.gamma_scale = checks.check_number(gamma_scale, "gamma_scale", at_least=0.0)
        self.with_noise = with_noise
        self.inplace = inplace
        self.couple_channels = couple_channels
        self.scale_by_keep = scale_by_keep

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.drop_prob == 0.0:
            return x
        keep = self._draw_keep(x)
        if self.with_noise:
            noise = torch.randn_like(keep).mul_(1.0 - keep)
            return x.mul_(keep).add_(noise) if self.inplace else x * keep + noise
        if self.scale_by_keep:
            kept = keep.sum(dtype=torch.float32).add_(1e-7)  # timm's number
            keep.mul_((keep.numel() / kept).to(keep.dtype))
        return x.mul_(keep) if self.inplace else x * keep

    @torch.no_grad()
    def _draw_keep(self, x: Tensor) -> Tensor:
        """1 where an element is kept, 0 elsewhere: ``[N, C or 1, H, W]``."""
        samples, channels, *sizes = x.shape
        block = [min(self.block_size, size) for size in sizes]
        wide = [size + side - 1 for size, side in zip(sizes, block, strict=True)]
        # The wide map has a seed for each element; its rate is the one of the map itself.
        scale = paper_gamma(1.0, sizes, block) / paper_gamma(1.0, wide, block)
        ones = x.new_ones(samples, 1 if self.couple_channels else channels, *wide)
        keep = functional.drop_block2d(
            ones, self.drop_prob, block, normalize="none", gamma_scale=self.gamma_scale * scale
        )
        top, left = (side // 2 for side in block)
        return keep[..., top : top + sizes[0], left : left + sizes[1]].contiguous()

    def extra_repr(self) -> str:
        return (
            f"drop_prob={self.drop_prob:g}, block_size={self.block_size}, "
            f"couple_channels={self.couple_channels}"
        )


_ATTRIBUTES = (
    "drop_prob",
    "block_size",
    "gamma_scale",
    "with_noise",
    "inplace",
    "couple_channels",
    "scale_by_keep",
)


def _drop_block2d(layer: Any) -> nn.Module | str:
    if not all(hasattr(layer, name) for name in _ATTRIBUTES):
        return "this release of timm draws blocks in another way; 1.0.23 and newer are known"
    return TimmDropBlock2d(*(getattr(layer, name) for name in _ATTRIBUTES))


def _drop_path(layer: Any) -> nn.Module | str:
    if layer.drop_prob is None:
        return "its drop_prob is None"
    return ours.DropPath(layer.drop_prob, bool(getattr(layer, "scale_by_keep", True)))


CONVERTERS = {
    ("timm", "DropPath"): _drop_path,
    ("timm", "DropBlock2d"): _drop_block2d,
}
