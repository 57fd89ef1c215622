"""The dropout layers of torch.nn."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from fused_dropout import nn as ours

_NAMES = ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout")


def _of_the_same_name(cls: type[nn.Module], layer: Any) -> nn.Module:
    return cls(layer.p, bool(layer.inplace))


CONVERTERS = {
    ("torch.nn.modules.dropout", name): partial(_of_the_same_name, getattr(ours, name))
    for name in _NAMES
}
