"""Modules with the parameters, defaults and errors of their torch.nn counterparts."""

from fused_dropout.nn.concrete_dropout import ConcreteDropout, ConcreteRegularisation
from fused_dropout.nn.dropconnect import DropConnectLinear
from fused_dropout.nn.gaussian_dropout import GaussianDropout
from fused_dropout.nn.variational_dropout import VariationalDropoutLinear

__all__ = [
    "ConcreteDropout",
    "ConcreteRegularisation",
    "DropConnectLinear",
    "GaussianDropout",
    "VariationalDropoutLinear",
]
