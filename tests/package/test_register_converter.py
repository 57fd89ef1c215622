"""register_converter: layers that the package does not know, and converters that go wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fused_dropout import nn as ours
from fused_dropout import register_converter, replace, replacement_report, restore
from fused_dropout._models.replace import converters


class Naive(nn.Module):
    """A linear layer that drops weights."""

    def __init__(self, rate: float = 0.4) -> None:
        super().__init__()
        self.rate = rate
        self.weight = nn.Parameter(torch.randn(3, 4))
        self.bias = nn.Parameter(torch.randn(3))
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        weight = nn.functional.dropout(self.weight, self.rate, self.training)
        return nn.functional.linear(x, weight, self.bias)


def convert(layer: Naive) -> nn.Module:
    new = ours.DropConnectLinear(4, 3, p=layer.rate, mask="batch", device="meta")
    new.weight, new.bias = layer.weight, layer.bias
    new.register_buffer("seen", layer.seen)
    return new


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test has a registry of its own."""
    monkeypatch.setattr(converters, "_registered", {})
    yield


def model_of_two() -> Any:
    return nn.Sequential(nn.Dropout(0.1), Naive(), nn.Dropout(0.2))


@pytest.mark.parametrize("target", [Naive, f"{__name__}:Naive", f"{__name__}:N*e"])
def test_by_class_and_by_name(target: Any) -> None:
    model = model_of_two()
    layer, tensors = model[1], (model[1].weight, model[1].bias, model[1].seen)
    names, x = list(model.state_dict()), torch.randn(5, 4)
    expected = model.eval()(x)
    register_converter(target, convert)
    replace(model)
    assert model[1] is layer and type(layer) is ours.DropConnectLinear
    assert (layer.weight, layer.bias, layer.seen) == tensors
    assert all(a is b for a, b in zip(tensors, (layer.weight, layer.bias, layer.seen), strict=True))
    assert layer.mask == "batch" and replacement_report(model).replaced[1].p == 0.4
    assert list(model.state_dict()) == names
    assert torch.equal(model(x), expected)
    model.train()(x).sum().backward()
    restore(model)
    assert type(layer) is Naive and list(model.state_dict()) == names
    assert torch.equal(model.eval()(x), expected)


def test_a_part_of_a_module_path_is_no_package() -> None:
    register_converter(f"{__name__[:-1]}:Naive", convert)
    model = model_of_two()
    replace(model)
    assert type(model[1]) is Naive


def test_a_registered_one_comes_before_ours_and_the_last_one_counts() -> None:
    register_converter(nn.Dropout, lambda layer: "not today")
    register_converter(nn.Dropout, lambda layer: ours.GaussianDropout(layer.p))
    layer = nn.Dropout(0.3)
    replace(layer)
    assert type(layer) is ours.GaussianDropout
    restore(layer)
    register_converter(nn.Dropout, None)
    replace(layer)
    assert type(layer) is ours.Dropout


def test_a_text_leaves_the_layer_and_stands_in_the_report() -> None:
    register_converter(Naive, lambda layer: "its mask is shared with the optimizer")
    model = model_of_two()
    replace(model)
    assert type(model[1]) is Naive
    assert replacement_report(model).left[0].reason == "its mask is shared with the optimizer"


def test_a_layer_within_a_layer() -> None:
    """What a converter keeps inside stays inside, and is converted too."""

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.1))
            self.rate = 0.2

    def converted(layer: Outer) -> nn.Module:
        return nn.Sequential(layer.inner, ours.Dropout(layer.rate))

    register_converter(Outer, converted)
    outer: Any = Outer()
    inner, weight = outer.inner, outer.inner[0].weight
    model = nn.Sequential(outer)
    replace(model)
    assert type(outer) is nn.Sequential and outer[0] is inner and type(inner[1]) is ours.Dropout
    assert outer(torch.ones(2, 4)).shape == (2, 4)
    restore(model)
    assert type(outer) is Outer and outer.inner is inner and inner[0].weight is weight
    assert type(inner[1]) is nn.Dropout and list(outer._modules) == ["inner"]


class Broken(Exception):
    pass


def raises(layer: Naive) -> nn.Module:
    layer.rate = 0.9
    layer.weight = nn.Parameter(torch.zeros(1))
    layer._modules["late"] = nn.ReLU()
    layer.register_forward_hook(lambda *_: None)
    raise Broken


def with_hooks(layer: Naive) -> nn.Module:
    new = convert(layer)
    new.register_forward_hook(lambda *_: None)
    return new


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (raises, Broken, ""),
        (lambda layer: None, TypeError, "1: the converter of Naive must return a module or a text"),
        (lambda layer: layer, ValueError, "the converter of Naive returned its argument"),
        (
            lambda layer: ours.DropConnectLinear(4, 3),
            ValueError,
            "1: the converter of Naive must return a layer with the same parameters",
        ),
        (with_hooks, ValueError, "without hooks of its own, got _forward_hooks"),
        (lambda layer: ours.Dropout(1.5), ValueError, "1: p, the drop probability"),
    ],
)
def test_all_or_nothing(function: Any, error: type[Exception], message: str) -> None:
    model = model_of_two()
    before = {id(m): (type(m), dict(vars(m))) for m in model.modules()}
    members = {
        id(m): {k: dict(v) for k, v in vars(m).items() if isinstance(v, dict)}
        for m in model.modules()
    }
    register_converter(Naive, function)
    with pytest.raises(error, match=message):
        replace(model, linear={})
    assert {id(m): (type(m), dict(vars(m))) for m in model.modules()} == before
    for module in model.modules():
        for name, content in members[id(module)].items():
            assert vars(module)[name] == content, name


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3, convert), TypeError, "target must be a class of modules or a text"),
        ((dict, convert), TypeError, "target must be a class of modules or a text"),
        (("Naive", convert), ValueError, "of the form 'package:Class', got 'Naive'"),
        (("timm:", convert), ValueError, "of the form 'package:Class'"),
        ((":Naive", convert), ValueError, "of the form 'package:Class'"),
        ((Naive, 3), TypeError, "function must be a function or None, got 3"),
        ((Naive, ours.Dropout), TypeError, "function must be a function or None, got <class"),
        ((Naive, None), ValueError, "target has no registered converter"),
    ],
)
def test_bad_arguments(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        register_converter(*arguments)
