"""Layers of other packages: recognised by name, and their distribution carried over.

`make test-clients` has the packages themselves; here stand classes written for the tests.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support import peers
from torch import Tensor, nn

from fused_dropout import nn as ours
from fused_dropout import replace, replacement_report, restore
from fused_dropout._models.replace.drop_connect import SharedMaskLinear
from fused_dropout._models.replace.timm_layers import TimmDropBlock2d
from fused_dropout._models.replace.torchvision_layers import (
    TorchvisionDropBlock2d,
    TorchvisionDropBlock3d,
)

BECOMES: dict[str, type[nn.Module]] = {
    "timm DropPath": ours.DropPath,
    "timm DropPath unscaled": ours.DropPath,
    "timm DropBlock2d": TimmDropBlock2d,
    "timm DropBlock2d per channel": TimmDropBlock2d,
    "timm DropBlock2d with noise": TimmDropBlock2d,
    "timm DropBlock2d unscaled": TimmDropBlock2d,
    "StochasticDepth row": ours.StochasticDepth,
    "StochasticDepth batch": ours.StochasticDepth,
    "torchvision DropBlock2d": TorchvisionDropBlock2d,
    "torchvision DropBlock3d": TorchvisionDropBlock3d,
    "BeitDropPath": ours.DropPath,
    "StableDropout": ours.Dropout,
    "RNNDropout": ours.LockedDropout,
    "LockedDropout": ours.LockedDropout,
    "probly DropConnectLinear": SharedMaskLinear,
}
DRAWS = 8000
# What one draw is about, small enough that pairs of elements can be counted. The maps are narrower
# than they are tall, and narrower than a block of 5.
SHAPES = {
    "DropBlock2d": (2, 6, 4),
    "DropBlock3d": (1, 3, 4, 3),
    "RNNDropout": (3, 2),
    "LockedDropout": (3, 2),
    "DropConnectLinear": (40,),
}
each_layer = pytest.mark.parametrize("kind", peers.LAYERS)


def input_of(layer: nn.Module) -> Tensor:
    return torch.randn(3, *shape_of(layer))


def shape_of(layer: nn.Module) -> tuple[int, ...]:
    return SHAPES.get(type(layer).__name__, (4,))


def test_every_kind_is_tried() -> None:
    assert BECOMES.keys() == peers.LAYERS.keys()


@each_layer
def test_settings_stay_and_evaluation_is_the_same(kind: str) -> None:
    layer = peers.LAYERS[kind]()
    cls, attributes, x = type(layer), dict(vars(layer)), input_of(layer)
    expected = layer.eval()(x)
    model = nn.Sequential(layer)
    replace(model)
    assert type(layer) is BECOMES[kind]
    if isinstance(layer, ours.LockedDropout):
        assert layer.batch_first == (kind == "RNNDropout")
    assert {name: vars(layer)[name] for name in attributes} == {**attributes, "training": False}
    assert torch.equal(layer(x), expected)
    report = replacement_report(model)
    rate = attributes.get("p", attributes.get("drop_prob"))
    assert report.replaced[0].p == rate and not report.left
    restore(model)
    assert type(layer) is cls and vars(layer).keys() == attributes.keys()
    assert torch.equal(layer(x), expected)


def draws_of(layer: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """The gradient of each element in each draw: 0 where it was dropped, else its scale."""

    def gradient(*sizes: int) -> Tensor:
        x = torch.ones(sizes, requires_grad=True)
        layer(x.clone()).sum().backward()
        assert x.grad is not None
        return x.grad

    layer.train()
    if getattr(layer, "mode", "") == "batch":  # a draw is a call
        found = torch.stack([gradient(2, *shape) for _ in range(DRAWS // 8)])
    elif isinstance(layer, peers.LockedDropout) or getattr(layer, "batch_first", True) is False:
        found = gradient(shape[0], DRAWS, *shape[1:]).transpose(0, 1)
    else:
        found = gradient(DRAWS, *shape)
    return found.flatten(1).double()


@each_layer
def test_the_distribution_is_the_same(kind: str) -> None:
    """How often each element and each pair is dropped, within 5.5 standard errors of each other.

    There are 48 x 48 pairs at most: one of 14 correct kinds fails with a probability of 0.0012; the
    seed is fixed.
    """
    torch.manual_seed(7)
    layer = peers.LAYERS[kind]()
    if isinstance(layer, peers.DropConnectLinear):
        return  # it drops weights: see the next test
    shape = shape_of(layer)
    before = draws_of(layer, shape)
    replace(layer)
    after = draws_of(layer, shape)
    scales = [draws[draws != 0].mean() for draws in (before, after)]
    torch.testing.assert_close(*scales, rtol=0.02, atol=0)
    one, other = (_pairs_dropped(draws) for draws in (before, after))
    error = ((one * (1 - one) + other * (1 - other)) / len(before)).sqrt()
    assert (one > 0).all() and torch.all((one - other).abs() <= 5.5 * error)


def _pairs_dropped(draws: Tensor) -> Tensor:
    """How often two elements are dropped together; on the diagonal, how often one is."""
    dropped = (draws == 0).double()
    return dropped.t() @ dropped / len(draws)


def test_weights_of_probly_are_dropped_once_for_all_rows() -> None:
    torch.manual_seed(3)
    layer: Any = peers.DropConnectLinear(nn.Linear(100, 80), 0.3)
    weight, bias = layer.weight, layer.bias
    replace(layer)
    assert layer.weight is weight and layer.bias is bias
    rows = layer(torch.eye(100)) - bias
    mask = (rows.abs() > weight.t().abs() / 2).float()
    torch.testing.assert_close(rows, mask * weight.t(), atol=1e-6, rtol=0)
    kept = float(mask.mean())
    assert abs(kept - 0.7) < 5 * math.sqrt(0.3 * 0.7 / mask.numel())
    twice = layer(torch.ones(2, 100))
    torch.testing.assert_close(twice[0], twice[1])
    assert not torch.equal(layer(torch.ones(1, 100)), layer(torch.ones(1, 100)))
    twice.sum().backward()
    assert weight.grad is not None and bias.grad is not None
    without_bias: Any = peers.DropConnectLinear(nn.Linear(4, 4, bias=False))
    replace(without_bias)
    assert without_bias.bias is None and without_bias(torch.ones(2, 4)).shape == (2, 4)


@pytest.mark.parametrize("sizes", [(9, 4), (4, 9), (3, 3)])
def test_blocks_larger_than_a_map_stay_squares(sizes: tuple[int, int]) -> None:
    """torchvision cuts both sides to the map's shorter one, nn.DropBlock2d each to its own."""
    layer: Any = peers.BlocksOfTorchvision2d(0.3, 7)
    replace(layer)
    x = torch.ones(4, 3, *sizes)
    torch.manual_seed(0)
    output = layer(x)
    torch.manual_seed(0)
    assert torch.equal(output, ours.DropBlock2d(0.3, min(sizes))(x))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (peers.DropPath(None), "drop_prob is None"),  # type: ignore[arg-type]
        (peers.BeitDropPath(None), "drop_prob is no number"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_mean_the_same_is_left(layer: nn.Module, reason: str) -> None:
    cls = type(layer)
    replace(layer)
    assert type(layer) is cls
    assert reason in replacement_report(layer).left[0].reason


def test_masks_kept_for_other_calls_are_left() -> None:
    layer: Any = peers.StableDropout(0.3)
    layer.context_stack = []
    replace(layer)
    assert type(layer) is peers.StableDropout
    assert "keeps its masks" in replacement_report(layer).left[0].reason


def test_an_older_drop_block_of_timm_is_left() -> None:
    layer: Any = peers.DropBlock2d(0.3)
    del layer.couple_channels
    replace(layer)
    assert type(layer) is peers.DropBlock2d
    assert "1.0.23" in replacement_report(layer).left[0].reason


def test_a_name_alone_does_not_count() -> None:
    """A class of this name in another package may be anything."""

    class DropPath(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop_prob = 0.3

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.rand(()) if self.training and self.drop_prob else x

    layer = DropPath()
    DropPath.__module__ = "timmy.layers"
    replace(layer)
    assert type(layer) is DropPath
    (left,) = replacement_report(layer).left
    assert "register_converter" in left.reason and left.p == 0.3


def test_a_subclass_of_a_peers_layer_is_left() -> None:
    class Mine(peers.DropPath):
        pass

    layer = Mine(0.3)
    replace(layer)
    assert type(layer) is Mine
    assert "a subclass of timm.layers.drop.DropPath" in replacement_report(layer).left[0].reason
