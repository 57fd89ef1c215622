"""Goes over a model and decides for each module what happens to it; changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from fused_dropout._models.replace.become import modules_of, original_of
from fused_dropout._models.replace.converters import (
    Converter,
    converter_of,
    has_its_own_forward,
    is_built_in,
    known_base,
)
from fused_dropout._models.replace.linear import (
    Chosen,
    check_options,
    choose,
    converted,
    has_dropconnect,
    obstacle,
    tied_tensors,
)
from fused_dropout._models.replace.peft_layers import (
    LoraDropout,
    LoraDropoutLinear,
    adapters,
    partner_of,
)
from fused_dropout._models.replace.report import (
    Left,
    Replaced,
    ReplacementReport,
    kind_of,
    rate_of_layer,
)
from fused_dropout._models.replace.unreached import unreached

DropoutFilter = Callable[[str, nn.Module], bool]


class Plan(NamedTuple):
    """What is to be done, and what the report will say.

    Attributes:
        replacements: pairs of a layer and what it is to become.
        report: of all layers that are replaced then, those of earlier calls included.
    """

    replacements: list[tuple[nn.Module, nn.Module]]
    report: ReplacementReport


def make_plan(
    model: nn.Module,
    linear: Any,
    dropout: bool | DropoutFilter,
    options: Mapping[str, Any],
    *,
    tied: bool = False,
) -> Plan:
    """Raises what ``replace`` raises; ``tied``: weights that others read are no obstacle."""
    check_options(options)
    chosen = {} if linear is None else choose(model, linear)
    places = None if tied else tied_tensors(model)
    bypassed = set() if tied else _read_past(model)
    pairs = {} if dropout is False else adapters(model)
    names = {id(module): name for name, module in modules_of(model)}
    replacements: list[tuple[nn.Module, nn.Module]] = []
    replaced: list[Replaced] = []
    left: list[Left] = []

    def decided(name: str, module: nn.Module, new: nn.Module | str, by_name: bool = False) -> None:
        if isinstance(new, nn.Module):
            replacements.append((module, new))
            replaced.append(_replaced(names, name, type(module), new))
        elif by_name:
            kind = kind_of(type(module))
            raise ValueError(f"linear names {name!r}, a {kind}, which cannot be replaced: {new}")
        else:
            left.append(Left(name, kind_of(type(module)), rate_of_layer(module), new))

    for name, module in modules_of(model):
        original = original_of(module)
        if original is not None:
            replaced.append(_replaced(names, name, original.cls, module))
        if id(module) in chosen and has_dropconnect(module):
            p = rate_of_layer(module)
            if p != chosen[id(module)].p:
                decided(name, module, "it is a DropConnect layer already; its p is to be set there")
        elif id(module) in chosen:
            choice = chosen[id(module)]
            new = _with_dropconnect(module, choice, places, options, bypassed)
            decided(name, module, new, choice.by_name)
        elif original is None and dropout is not False and not _is_ours(module):
            converter = converter_of(type(module))
            if converter is None:
                _look_for_more(name, module, left)
            elif callable(dropout) and not dropout(name, module):
                decided(name, module, "dropout= leaves it")
            elif _is_joined(pairs.get(id(module)), chosen, converter):
                layer, linear = pairs[id(module)]
                decided(name, layer, LoraDropout(layer.p, linear))
                decided(names[id(linear)], linear, LoraDropoutLinear(linear, layer))
            else:
                decided(name, module, _converted(name, module, converter))
    return Plan(replacements, ReplacementReport(tuple(replaced), tuple(left)))


def _is_ours(module: nn.Module) -> bool:
    return any(base.__module__.startswith("fused_dropout.") for base in type(module).__mro__)


def _is_joined(
    pair: tuple[nn.Dropout, nn.Linear] | None, chosen: Mapping[int, Chosen], converter: Converter
) -> bool:
    """Whether the linear layer of a LoRA adapter is to drop: nothing else is asked of the two."""
    if pair is None or id(pair[1]) in chosen:
        return False
    return is_built_in(converter) and converter_of(type(pair[1])) is None


def _replaced(names: Mapping[int, str], name: str, before: type, after: nn.Module) -> Replaced:
    partner = names.get(id(partner_of(after)))
    return Replaced(name, kind_of(before), kind_of(type(after)), rate_of_layer(after), partner)


def _with_dropconnect(
    layer: nn.Module,
    choice: Chosen,
    places: Mapping[int, int] | None,
    options: Mapping[str, Any],
    bypassed: set[int],
) -> nn.Module | str:
    if id(layer) in bypassed and options.get("convention") == "paper":
        return "in evaluation TransformerEncoderLayer reads its weight, without the paper's factor"
    return obstacle(layer, places) or converted(layer, choice.p, options)


def _read_past(model: nn.Module) -> set[int]:
    """Linear layers whose weight another module reads in evaluation instead of calling them."""
    layers = (m for _, m in modules_of(model) if isinstance(m, nn.TransformerEncoderLayer))
    return {id(linear) for layer in layers for linear in (layer.linear1, layer.linear2)}


def _converted(name: str, layer: nn.Module, converter: Converter) -> nn.Module | str:
    if has_its_own_forward(layer, converter):
        return "its forward was set on the object"
    try:
        return converter(layer)
    except (ValueError, TypeError) as error:
        if type(error) not in (ValueError, TypeError):
            raise
        raise type(error)(f"{name or 'the model itself'}: {error}") from error


def _look_for_more(name: str, module: nn.Module, left: list[Left]) -> None:
    """Reports a module without a converter if it drops."""
    kind = kind_of(type(module))
    base = None if isinstance(module, torch.jit.ScriptModule) else known_base(type(module))
    if base is not None:
        reason = f"a subclass of {kind_of(base)} may mean more (register_converter)"
        left.append(Left(name, kind, rate_of_layer(module), reason))
        return
    found = unreached(module)
    if found is not None:
        left.append(Left(name, kind, *found))
