"""Functional forms of the layers."""

from fused_dropout.functional.bias_act_dropout_add import bias_act_dropout_add
from fused_dropout.functional.dropconnect import dropconnect_linear
from fused_dropout.functional.dropout import (
    alpha_dropout,
    dropout,
    dropout1d,
    dropout2d,
    dropout3d,
    feature_alpha_dropout,
    locked_dropout,
)

__all__ = [
    "alpha_dropout",
    "bias_act_dropout_add",
    "dropconnect_linear",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "feature_alpha_dropout",
    "locked_dropout",
]
