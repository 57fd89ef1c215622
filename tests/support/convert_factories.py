"""Factories of models for `fused-dropout convert-check`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from support import peers


def model_of_all() -> nn.Module:
    """A layer of every kind that is converted."""
    layers = {name.replace(".", " "): make() for name, make in peers.LAYERS.items()}
    for name in ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout"):
        layers[name] = getattr(nn, name)(0.3)
    layers |= {"FeatureAlphaDropout": nn.FeatureAlphaDropout(0.2), "all": nn.Dropout(1.0)}
    return nn.ModuleDict({**layers, "none": nn.Dropout(0.0)})


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.3)
        self.rnn = nn.LSTM(6, 6, 2, dropout=0.2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"y": self.rnn(self.drop(self.norm(self.linear(x)))), "note": None}


def without_inputs() -> nn.Module:
    return Model()


def with_inputs() -> tuple[nn.Module, Tensor]:
    return Model(), torch.randn(4, 8)


class Noisy(Model):
    """Draws numbers of which no source tells: a function made somewhere else does."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        return super().forward(vars(torch)["rand_like"](x) + x)


def with_noise() -> tuple[nn.Module, dict[str, Tensor]]:
    return Noisy(), {"x": torch.randn(4, 8)}


def nothing() -> None:
    pass


def no_inputs() -> tuple[nn.Module, int]:
    return Model(), 3
