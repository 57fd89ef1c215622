"""What a dropout layer drops, by running a copy of it on an input made for its kind.

Gradients say what was dropped, whatever stands in its place: 0 where it was, the scale elsewhere.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fused_dropout import nn as ours
from fused_dropout._models.replace.drop_connect import SharedMaskLinear
from fused_dropout._models.replace.peft_layers import (
    LoraDropout,
    LoraDropoutLinear,
    partner_of,
)
from fused_dropout._models.replace.timm_layers import TimmDropBlock2d
from fused_dropout._models.replace.transformers_layers import DropConnectConv1D
from fused_dropout.nn._weight_drop import masked_weights

_CALLS = 1500  # of a layer whose mask has one entry
_MOST_COLUMNS = 512


class Dropped(NamedTuple):
    """What was dropped in training mode.

    Attributes:
        shares: of each unit the share that was dropped, float64; units are independent.
        scale: what kept values were multiplied by, on average; NaN where nothing was kept.
        p: what the rate should be, where that is not the p of the whole layer.
        candidates: of how many parameters this one is the farthest from its p.
    """

    shares: Tensor
    scale: float
    p: float | None = None
    candidates: int = 1

    @property
    def rate(self) -> float:
        """The share of all units together."""
        return float(self.shares.mean())

    def distance_from(self, p: float) -> float:
        """That of the rate from ``p``, in standard errors."""
        return in_errors(self.rate - p, math.sqrt(p * (1 - p) / len(self.shares)))


def in_errors(difference: float, error: float) -> float:
    """A difference in standard errors."""
    if error == 0:
        return 0.0 if difference == 0 else math.inf
    return abs(difference) / error


class Probe(NamedTuple):
    """How a kind of layer is run.

    Attributes:
        run: of a layer without hooks, in training mode.
        drops_at_p: whether a unit is dropped at the rate p; DropBlock's blocks overlap.
        runs_before: whether what the layer was before runs in this way too.
    """

    run: Callable[[Any], Dropped]
    drops_at_p: bool = True
    runs_before: bool = True


def probe_of(layer: nn.Module) -> Probe | None:
    """By what the layer is after a conversion; None for classes that are not known here."""
    return next((probe for cls, probe in _PROBES.items() if isinstance(layer, cls)), None)


def bare(layer: nn.Module) -> nn.Module:
    """A copy of the layer without its hooks, in training mode; tensors are shared."""
    copy = object.__new__(type(layer))
    vars(copy).update({**vars(layer), **vars(nn.Module())})
    members = ("_parameters", "_buffers", "_modules")
    vars(copy).update({name: dict(vars(layer)[name]) for name in members})
    return copy


def _by_gradient(layer: nn.Module, shape: tuple[int, ...], dims: tuple[int, ...]) -> Dropped:
    """``dims`` of the input are the units; all else counts together."""
    input = torch.ones(shape, requires_grad=True)
    layer(input.clone()).sum().backward()  # a clone, as the layer may write in place
    assert input.grad is not None
    gradient = input.grad.double()
    others = [dim for dim in range(len(shape)) if dim not in dims]
    dropped = gradient == 0
    shares = dropped.double().mean(others) if others else dropped.double()
    kept = gradient[~dropped]
    return Dropped(shares.flatten(), float(kept.mean()) if len(kept) else math.nan)


def _of_shape(*shape: int, units: tuple[int, ...], drops_at_p: bool = True) -> Probe:
    return Probe(lambda layer: _by_gradient(layer, shape, units), drops_at_p)


def _of_samples(layer: nn.Module) -> Dropped:
    if getattr(layer, "mode", "row") == "row":
        return _by_gradient(layer, (20_000, 2), (0,))
    calls = [_by_gradient(layer, (1, 2), (0,)) for _ in range(_CALLS)]
    scales = [call.scale for call in calls if not math.isnan(call.scale)]
    scale = sum(scales) / len(scales) if scales else math.nan
    return Dropped(torch.cat([call.shares for call in calls]), scale)


def _of_steps(layer: nn.Module) -> Dropped:
    """Locked dropout: an element is dropped in all steps or in none."""
    shape = (64, 3, 256) if getattr(layer, "batch_first", False) else (3, 64, 256)
    return _by_gradient(layer, shape, (shape.index(64), 2))


def _of_connections(layer: nn.Module) -> Dropped:
    """Rows that each have a single 1 read a column of masked weights."""
    transposed = isinstance(layer, DropConnectConv1D)
    weight: Any = layer._parameters["weight"]
    assert isinstance(weight, Tensor)
    columns, outputs = weight.shape if transposed else weight.shape[::-1]
    rows = min(columns, _MOST_COLUMNS)
    outputs = min(outputs, _MOST_COLUMNS)
    shape = (columns, outputs) if transposed else (outputs, columns)
    layer._parameters["weight"] = nn.Parameter(torch.ones(shape))
    layer._parameters["bias"] = None if not transposed else nn.Parameter(torch.zeros(outputs))
    for name in ("nf", "out_features"):
        if name in vars(layer):
            vars(layer)[name] = outputs
    with torch.no_grad():
        output = layer(torch.eye(rows, columns)).double()
    dropped = output == 0
    kept = output[~dropped]
    scale = float(kept.mean()) if len(kept) else math.nan
    return Dropped(dropped.double().flatten(), scale)


def _of_adapter(layer: nn.Module) -> Dropped:
    """Both layers of a LoRA adapter together, whichever of them this is; before, the dropout."""
    partner = partner_of(layer)
    if partner is None:
        return _by_gradient(layer, _SQUARE, (0, 1))
    dropout, linear = bare(layer), bare(partner)
    if isinstance(layer, LoraDropoutLinear):
        dropout, linear = linear, dropout
    vars(dropout)["partner"], vars(linear)["partner"] = (linear,), (dropout,)
    linear._parameters.update(weight=nn.Parameter(torch.ones(1, _SQUARE[1])), bias=None)
    return _by_gradient(nn.Sequential(dropout, linear), _SQUARE, (0, 1))


def _of_weights(layer: Any) -> Dropped:
    """Of the parameters of a WeightDrop the one whose rate is the farthest from its p."""
    layer = copy.deepcopy(layer).requires_grad_(False)
    for name in layer.weight_drop:
        layer.get_parameter(name).fill_(1.0)
    found = [_of_weight(layer, name, p) for name, p in layer.weight_drop.items()]
    worst = max(found, key=lambda each: each.distance_from(each.p or 0.0))
    return worst._replace(candidates=len(found))


def _of_weight(layer: Any, name: str, p: float) -> Dropped:
    """As many masks of it as have ``_CALLS`` units together."""
    own = {"row": [0], "column": [1]}.get(layer.weight_drop_mode)
    shape = layer.get_parameter(name).shape
    units = math.prod(shape if own is None else (shape[dim] for dim in own))
    others = [] if own is None else [dim for dim in range(len(shape)) if dim not in own]
    shares, kept = [], []
    for _ in range(math.ceil(_CALLS / units)):
        masked = masked_weights(layer)[name].double()
        dropped = masked == 0
        shares.append((dropped.double().mean(others) if others else dropped.double()).flatten())
        kept.append(masked[~dropped])
    values = torch.cat(kept)
    scale = float(values.mean()) if len(values) else math.nan
    return Dropped(torch.cat(shares), scale, p)


_SQUARE = (256, 256)
_ELEMENTS = _of_shape(*_SQUARE, units=(0, 1))
_PROBES: dict[type[nn.Module], Probe] = {
    ours.WeightDrop: Probe(_of_weights, runs_before=False),  # theirs are wrappers of many kinds
    LoraDropout: Probe(_of_adapter),
    LoraDropoutLinear: Probe(_of_adapter),
    ours.LockedDropout: Probe(_of_steps),
    ours.Dropout: _ELEMENTS,
    ours.AlphaDropout: _ELEMENTS,
    ours.Dropout1d: _of_shape(256, 128, 3, units=(0, 1)),
    ours.Dropout2d: _of_shape(256, 128, 2, 2, units=(0, 1)),
    ours.Dropout3d: _of_shape(256, 128, 1, 2, 2, units=(0, 1)),
    ours.FeatureAlphaDropout: _of_shape(256, 128, 3, units=(0, 1)),
    ours.StochasticDepth: Probe(_of_samples),
    ours.DropPath: Probe(_of_samples),
    ours.DropBlock1d: _of_shape(512, 2, 64, units=(0,), drops_at_p=False),
    ours.DropBlock2d: _of_shape(512, 2, 15, 15, units=(0,), drops_at_p=False),
    ours.DropBlock3d: _of_shape(128, 2, 9, 9, 9, units=(0,), drops_at_p=False),
    TimmDropBlock2d: _of_shape(512, 2, 15, 15, units=(0,), drops_at_p=False),
    ours.DropConnectLinear: Probe(_of_connections),
    DropConnectConv1D: Probe(_of_connections),
    SharedMaskLinear: Probe(_of_connections),
}
