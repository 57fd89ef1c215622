"""Modules with the parameters, defaults and errors of their torch.nn counterparts."""

from fused_dropout.nn.bias_act_dropout_add import BiasActDropoutAdd
from fused_dropout.nn.dropconnect import DropConnectLinear

__all__ = ["BiasActDropoutAdd", "DropConnectLinear"]
