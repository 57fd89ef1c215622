"""Modules with the parameters, defaults and errors of their torch.nn counterparts."""

from fused_dropout.nn.bias_act_dropout_add import BiasActDropoutAdd
from fused_dropout.nn.concrete_dropout import ConcreteDropout, ConcreteRegularisation
from fused_dropout.nn.drop_block import DropBlock1d, DropBlock2d, DropBlock3d
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
from fused_dropout.nn.gaussian_dropout import GaussianDropout
from fused_dropout.nn.variational_dropout import VariationalDropoutLinear

__all__ = [
    "AlphaDropout",
    "BiasActDropoutAdd",
    "ConcreteDropout",
    "ConcreteRegularisation",
    "DropBlock1d",
    "DropBlock2d",
    "DropBlock3d",
    "DropConnectLinear",
    "DropPath",
    "DropPathAdd",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "FeatureAlphaDropout",
    "GaussianDropout",
    "LockedDropout",
    "StochasticDepth",
    "VariationalDropoutLinear",
]
