"""Models for the tests of fused_dropout.check, and what it finds in them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fused_dropout import check

Expected = list[tuple[str, str]]


def found(model: nn.Module, example_inputs: Any = None) -> Expected:
    """(mistake, where) of each finding, sorted."""
    return sorted(finding[:2] for finding in check(model, example_inputs))


def found_both_ways(model: nn.Module, *inputs: Tensor) -> Expected:
    """What torch.fx gives, after checking that running the model gives the same."""
    by_tracing = found(model)
    assert by_tracing == found(model, inputs)
    return by_tracing


def perceptron(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 6), *layers, nn.Linear(6, 6))


X = torch.randn(4, 6)


class Forward(nn.Module):
    """A model whose forward is given as a function."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **layers: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class Untraceable(nn.Sequential):
    """Control flow that depends on values, which stops torch.fx."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.sum() > -math.inf else x
