"""Dropout layers: modules that drop in training and do not in evaluation.

The layers have the arguments, defaults and errors of their counterparts in ``torch.nn``,
torchvision and timm, and call the functions of :mod:`fused_dropout.functional`.
"""

from fused_dropout.nn._bias_act_dropout_add import BiasActDropoutAdd
from fused_dropout.nn._concrete_dropout import ConcreteDropout, ConcreteRegularisation
from fused_dropout.nn._drop_block import DropBlock1d, DropBlock2d, DropBlock3d
from fused_dropout.nn._drop_path import DropPath, DropPathAdd, DropPathSkip, StochasticDepth
from fused_dropout.nn._dropconnect import DropConnectLinear
from fused_dropout.nn._dropconnect_conv import (
    DropConnectConv1d,
    DropConnectConv2d,
    DropConnectConv3d,
)
from fused_dropout.nn._dropout import (
    AlphaDropout,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    FeatureAlphaDropout,
    LockedDropout,
)
from fused_dropout.nn._dropout_linear import DropoutLinear
from fused_dropout.nn._embedding_dropout import EmbeddingDropout
from fused_dropout.nn._gaussian_dropout import GaussianDropout
from fused_dropout.nn._gaussian_noise import GaussianNoise
from fused_dropout.nn._token_dropout import PatchDropout, TokenDropout
from fused_dropout.nn._variational_dropout import VariationalDropoutLinear
from fused_dropout.nn._weight_drop import WeightDrop
from fused_dropout.nn._zoneout import Zoneout

__all__ = [
    "AlphaDropout",
    "BiasActDropoutAdd",
    "ConcreteDropout",
    "ConcreteRegularisation",
    "DropBlock1d",
    "DropBlock2d",
    "DropBlock3d",
    "DropConnectConv1d",
    "DropConnectConv2d",
    "DropConnectConv3d",
    "DropConnectLinear",
    "DropPath",
    "DropPathAdd",
    "DropPathSkip",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "DropoutLinear",
    "EmbeddingDropout",
    "FeatureAlphaDropout",
    "GaussianDropout",
    "GaussianNoise",
    "LockedDropout",
    "PatchDropout",
    "StochasticDepth",
    "TokenDropout",
    "VariationalDropoutLinear",
    "WeightDrop",
    "Zoneout",
]
