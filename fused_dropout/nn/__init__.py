"""Modules with the parameters, defaults and errors of their torch.nn counterparts."""

from fused_dropout.nn.drop_path import DropPath, DropPathAdd, StochasticDepth
from fused_dropout.nn.dropconnect import DropConnectLinear
from fused_dropout.nn.dropout import (
    AlphaDropout,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    FeatureAlphaDropout,
    LockedDropout,
)

__all__ = [
    "AlphaDropout",
    "DropConnectLinear",
    "DropPath",
    "DropPathAdd",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "FeatureAlphaDropout",
    "LockedDropout",
    "StochasticDepth",
]
