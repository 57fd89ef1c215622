"""Modules with the parameters, defaults and errors of their torch.nn counterparts."""

from fused_dropout.nn.drop_block import DropBlock1d, DropBlock2d, DropBlock3d
from fused_dropout.nn.drop_path import DropPath, DropPathAdd, StochasticDepth
from fused_dropout.nn.dropconnect import DropConnectLinear

__all__ = [
    "DropBlock1d",
    "DropBlock2d",
    "DropBlock3d",
    "DropConnectLinear",
    "DropPath",
    "DropPathAdd",
    "StochasticDepth",
]
