"""Layers and functions that drop: what kind of thing, at which rate, and whether a call does."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import nn

from fused_dropout import functional
from fused_dropout._models.check.rates import rate_of
from fused_dropout.nn import GaussianDropout, LockedDropout

# What a layer drops at random: two layers of one kind in a row do the same thing twice.
ELEMENTS, CHANNELS, STEPS, NOISE = "elements", "channels", "features of all steps", "noise"
ALPHA, ALPHA_CHANNELS, OTHER = "elements to SELU's lowest value", "channels to it", ""

_KINDS_OF_LAYERS: dict[type[nn.Module], str] = {
    nn.Dropout: ELEMENTS,
    nn.Dropout1d: CHANNELS,
    nn.Dropout2d: CHANNELS,
    nn.Dropout3d: CHANNELS,
    nn.AlphaDropout: ALPHA,
    nn.FeatureAlphaDropout: ALPHA_CHANNELS,
    LockedDropout: STEPS,
    GaussianDropout: NOISE,
}
_KINDS_OF_FUNCTIONS: dict[Callable[..., Any], str] = {
    F.dropout: ELEMENTS,
    F.dropout1d: CHANNELS,
    F.dropout2d: CHANNELS,
    F.dropout3d: CHANNELS,
    F.alpha_dropout: ALPHA,
    F.feature_alpha_dropout: ALPHA_CHANNELS,
    functional.dropout: ELEMENTS,
    functional.dropout1d: CHANNELS,
    functional.dropout2d: CHANNELS,
    functional.dropout3d: CHANNELS,
    functional.alpha_dropout: ALPHA,
    functional.feature_alpha_dropout: ALPHA_CHANNELS,
    functional.locked_dropout: STEPS,
    functional.gaussian_dropout: NOISE,
    functional.bias_act_dropout_add: OTHER,
    functional.drop_block1d: OTHER,
    functional.drop_block2d: OTHER,
    functional.drop_block3d: OTHER,
    functional.drop_path: OTHER,
    functional.drop_path_add: OTHER,
    functional.dropconnect_linear: OTHER,
    functional.stochastic_depth: OTHER,
}


class Dropping(NamedTuple):
    """What a call drops.

    Attributes:
        kind: one of the constants above.
        p: its rate; None: unknown.
        on: whether it drops in the mode that the model was run in; a module obeys its own mode.
    """

    kind: str
    p: float | None
    on: bool


def layer_drops(module: nn.Module) -> Dropping | None:
    """What a dropout layer drops; None for other modules, and kinds of which order says nothing."""
    kinds = (kind for cls, kind in _KINDS_OF_LAYERS.items() if isinstance(module, cls))
    kind = next(kinds, None)
    return None if kind is None else Dropping(kind, rate_of(module), module.training)


def function_drops(
    function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Dropping | None:
    """What a call of a function drops; None for functions that are not about dropout."""
    if function is F.scaled_dot_product_attention:
        p = _number(args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0))
        return Dropping(OTHER, p, p != 0)
    try:
        kind = _KINDS_OF_FUNCTIONS.get(function)
    except TypeError:  # not hashable
        return None
    if kind is None:
        return None
    call = inspect.signature(function).bind(*args, **kwargs)
    call.apply_defaults()
    arguments = call.arguments
    p = _number(arguments["p"] if "p" in arguments else arguments["drop_prob"])
    return Dropping(kind, p, bool(arguments["training"] is True and p != 0))


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) else None
