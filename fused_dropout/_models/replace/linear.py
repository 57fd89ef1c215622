"""Which linear layers get DropConnect, at which p, and which of them cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fused_dropout._core import checks
from fused_dropout._models.replace.become import modules_of, share_members
from fused_dropout._models.replace.report import kind_of
from fused_dropout._models.replace.transformers_layers import DropConnectConv1D, is_conv1d
from fused_dropout.nn import DropConnectLinear

#: p of all layers; or p by name or pattern, None for a layer that stays; or what gives it.
LinearRates = float | Mapping[str, float | None] | Callable[[str, nn.Module], float | None]


class Chosen(NamedTuple):
    """A linear layer to which DropConnect is to come.

    Attributes:
        p: its drop probability.
        by_name: whether it was named by itself, so that not to replace it is an error.
    """

    p: float
    by_name: bool


def choose(model: nn.Module, linear: Any) -> dict[int, Chosen]:
    """By the id of a layer; checks all that ``linear`` says before anything is changed."""
    if isinstance(linear, Mapping):
        return _chosen_by_key(model, linear)
    if callable(linear):
        return _chosen_by_function(model, linear)
    p = _checked_p(linear, "linear")
    layers = (layer for _, layer in modules_of(model) if _could_be_linear(layer))
    return {id(layer): Chosen(p, False) for layer in layers if not has_dropconnect(layer)}


def _chosen_by_function(model: nn.Module, linear: Callable[[str, Any], Any]) -> dict[int, Chosen]:
    chosen = {}
    for name, layer in modules_of(model):
        if _is_linear(layer) or is_conv1d(layer):
            p = linear(name, layer)
            if p is not None:
                chosen[id(layer)] = Chosen(_checked_p(p, f"linear({name!r}, layer)"), True)
    return chosen


def _chosen_by_key(model: nn.Module, linear: Mapping[Any, Any]) -> dict[int, Chosen]:
    """The first key that fits a layer decides; a name without wildcards comes before all others."""
    for key, p in linear.items():
        if not isinstance(key, str):
            raise TypeError(f"linear's keys must be names or patterns, got {key!r}")
        if p is not None:
            _checked_p(p, f"linear[{key!r}]")
    names = _all_names(model)
    unused = set(linear)
    chosen: dict[int, Chosen] = {}
    for _, layer in modules_of(model):
        fitting = [
            key for key in linear if any(fnmatchcase(each, key) for each in names[id(layer)])
        ]
        exact = [key for key in linear if key in names[id(layer)]]
        if not (fitting or exact):
            continue
        if not (_could_be_linear(layer) or has_dropconnect(layer) or is_conv1d(layer)):
            if exact:
                raise ValueError(
                    f"linear[{exact[0]!r}] must name a linear layer, got a {kind_of(type(layer))}"
                )
            continue
        unused -= {*fitting, *exact}
        p = linear[(exact or fitting)[0]]
        if p is not None:
            chosen[id(layer)] = Chosen(checks.check_probability(p), bool(exact))
    if unused:
        named = ", ".join(repr(key) for key in linear if key in unused)
        raise ValueError(f"linear's keys must each fit a linear layer of the model; not so {named}")
    return chosen


def _all_names(model: nn.Module) -> dict[int, set[str]]:
    """Every name of a module, by its id: a layer in several places has several."""
    names: dict[int, set[str]] = {}

    def visit(module: nn.Module, name: str, inside: frozenset[int]) -> None:
        names.setdefault(id(module), set()).add(name)
        if id(module) in inside:
            return
        for key, child in (vars(module).get("_modules") or {}).items():
            if isinstance(child, nn.Module):
                visit(child, f"{name}.{key}" if name else key, inside | {id(module)})

    visit(model, "", frozenset())
    return names


def _checked_p(p: Any, name: str) -> float:
    if isinstance(p, bool):
        raise TypeError(f"{name} must be a drop probability, got {p}")
    return checks.check_probability(p, name)


def _is_linear(layer: nn.Module) -> bool:
    return type(layer) is nn.Linear


def _could_be_linear(layer: nn.Module) -> bool:
    """A linear layer of another kind, such as a quantised one, which is worth a word."""
    named_so = "Linear" in type(layer).__name__ and hasattr(layer, "in_features")
    return isinstance(layer, nn.Linear) or named_so


def converted(layer: Any, p: float, options: Mapping[str, Any]) -> nn.Module:
    """What the layer is to become."""
    new: nn.Module
    if is_conv1d(layer):
        nx, nf = layer.weight.shape
        new = DropConnectConv1D(nx, nf, p, **options)
    else:
        has_bias = layer.bias is not None
        new = DropConnectLinear(
            layer.in_features, layer.out_features, has_bias, p, **options, device="meta"
        )
    share_members(new, layer)
    return new


def check_options(options: Mapping[str, Any]) -> None:
    """The further arguments are those of DropConnectLinear, and valid."""
    for name in ("in_features", "out_features", "bias", "p", "device", "dtype"):
        if name in options:
            raise TypeError(f"replace() got an unexpected keyword argument {name!r}")
    try:
        DropConnectLinear(1, 1, False, **options, device="meta")
    except TypeError as error:
        if "unexpected keyword argument" in str(error):
            raise TypeError(str(error).replace("DropConnectLinear.__init__", "replace")) from None
        raise


def tied_tensors(model: nn.Module) -> dict[int, int]:
    """In how many places of the model a parameter stands, by its id."""
    return Counter(id(parameter) for parameter in _parameters_of(model))


def _parameters_of(model: nn.Module) -> Iterator[Tensor]:
    for _, module in modules_of(model):
        parameters = vars(module).get("_parameters") or {}
        yield from (parameter for parameter in parameters.values() if parameter is not None)


def has_dropconnect(layer: nn.Module) -> bool:
    """Whether it is one of our DropConnect layers already."""
    return isinstance(layer, (DropConnectLinear, DropConnectConv1D))


def obstacle(layer: nn.Module, places: Mapping[int, int] | None) -> str | None:
    """Why a layer cannot get DropConnect; None where it can. ``places``: see tied_tensors."""
    if not (_is_linear(layer) or is_conv1d(layer)):
        return "it may mean more than a torch.nn.Linear"
    if "forward" in vars(layer):
        return "its forward was set on the object"
    tensors = layer._parameters
    if tensors.get("weight") is None:
        return "its weight is computed from other parameters"
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if type(tensor) is not nn.Parameter or type(tensor.data) is not Tensor:
            return f"its {name} is a {type(tensor).__name__}, no plain parameter"
        if tensor.layout is not torch.strided:
            return f"its {name} is sparse ({tensor.layout})"
        if tensor.dtype not in checks.FLOAT_DTYPES:
            return f"its {name} has the dtype {tensor.dtype}"
        if places is not None and places[id(tensor)] > 1:
            return (
                f"its {name} is tied to another layer's, which would not be masked; "
                "to_dropconnect(filter=...) takes it all the same"
            )
    return None
