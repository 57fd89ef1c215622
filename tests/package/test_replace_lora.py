"""LoRA adapters: the linear layer A drops its own input, and what was between is kept no more."""

from __future__ import annotations

import copy
import io
import pickle
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support import peers
from torch import Tensor, nn

import fused_dropout
from fused_dropout import functional, register_converter, replace, replacement_report, restore
from fused_dropout import nn as ours
from fused_dropout._models.replace import converters
from fused_dropout._models.replace.peft_layers import LoraDropout, LoraDropoutLinear

WIDTH, P = 24, 0.3


def adapter(*names: str) -> Any:
    torch.manual_seed(0)
    return peers.LoraLinear(nn.Linear(WIDTH, 8), *(names or ("default",)), p=P)


def parts(layer: Any, name: str = "default") -> tuple[Any, Any]:
    return layer.lora_dropout[name], layer.lora_A[name]


def is_joined(layer: Any, name: str = "default") -> bool:
    dropout, linear = parts(layer, name)
    types = type(dropout), type(linear)
    assert types in ((LoraDropout, LoraDropoutLinear), (ours.Dropout, nn.Linear)), types
    return types[0] is LoraDropout


def seeded(call: Callable[[], Any]) -> Any:
    torch.manual_seed(3)
    return call()


def save_and_load(model: nn.Module) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: list[Callable[[Any], Any]] = [
    lambda model: model,
    copy.deepcopy,
    lambda model: pickle.loads(pickle.dumps(model)),
    save_and_load,
]


@pytest.fixture(autouse=True)
def no_registered_converters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converters, "_registered", {})


@pytest.mark.parametrize("copied", COPIES)
def test_there_and_back(copied: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {"peft": None, peers.LoraLinear.__module__: peers.LoraLinear}
    for name, cls in modules.items():  # where pickle looks for the class
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(Linear=cls))
    layer = adapter("default", "other")
    x = torch.randn(5, WIDTH)
    state = {name: value.clone() for name, value in layer.state_dict().items()}
    parameters = dict(layer.named_parameters())
    before = {id(module) for module in layer.modules()}
    expected = layer.eval()(x)
    attributes = [dict(vars(module)) for name in layer.lora_A for module in parts(layer, name)]
    layer.train()

    assert replace(layer) is layer

    assert is_joined(layer) and is_joined(layer, "other")
    assert {id(module) for module in layer.modules()} == before
    after = dict(layer.named_parameters())
    assert list(after) == list(parameters) and all(after[k] is parameters[k] for k in after)
    assert list(layer.state_dict()) == list(state)
    layer(x).sum().backward()
    model = copied(layer)
    for name in ("default", "other"):
        dropout, linear = parts(model, name)
        assert dropout.partner[0] is linear and linear.partner[0] is dropout
        assert dropout.p == linear.p == P
        assert f"p={P}" in repr(dropout) and f"p={P}" in repr(linear)
    assert torch.equal(model.eval()(x), expected)

    restore(model)

    assert torch.equal(model(x), expected)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    for name in ("default", "other"):
        dropout, linear = parts(model, name)
        assert (type(dropout), type(linear)) == (nn.Dropout, nn.Linear)
    found = [vars(module) for name in model.lora_A for module in parts(model, name)]
    assert [each.keys() for each in found] == [each.keys() for each in attributes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mask_is_the_one_of_dropout(dtype: torch.dtype) -> None:
    layer = adapter().to(dtype)
    replace(layer)
    dropout, linear = parts(layer)
    x = torch.randn(7, WIDTH, dtype=dtype)
    found = seeded(lambda: linear(dropout(x)))
    dropped = seeded(lambda: functional.dropout(x, P))
    assert torch.equal(dropout(x), x) and not torch.equal(dropped, x)
    expected = F.linear(dropped.double(), linear.weight.double())
    torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=2e-2)
    if dtype is torch.float32:
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_backward_keeps_one_input_for_all_adapters() -> None:
    """Nothing of the size of x but x: no dropped copy, no mask, of three adapters."""
    model = nn.ModuleList([adapter() for _ in range(3)])
    x = torch.randn(50, WIDTH)

    def kept() -> set[int]:
        found: set[int] = set()

        def note(tensor: Tensor) -> Tensor:
            if tensor.numel() >= x.numel():
                found.add(tensor.data_ptr())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            outputs = [layer(x) for layer in model]
        assert len(outputs) == 3
        return found

    assert len(kept()) >= 3
    replace(model)
    assert kept() == {x.data_ptr()}


def test_p_and_mode_are_those_of_the_dropout_layer() -> None:
    """As code finds it that sets the rate or the mode of every torch.nn.Dropout."""
    layer = adapter()
    replace(layer)
    dropout, linear = parts(layer)
    x = torch.randn(5, WIDTH)
    plain = F.linear(x, linear.weight)
    for module in layer.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    assert linear.p == 0 and torch.equal(linear(dropout(x)), plain)
    linear.p = 1.0
    assert dropout.p == 1 and not linear(dropout(x)).any()
    dropout.p = P
    dropout.eval()
    assert torch.equal(linear(dropout(x)), plain)
    dropout.train()
    linear.eval()
    assert not torch.equal(linear(dropout(x)), plain)
    layer.eval()
    with fused_dropout.mc_dropout(layer):
        assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer(x), layer(x))
    dropout.p = 0.6
    restore(layer)
    assert dropout.p == 0.6


@pytest.mark.parametrize("restored", ["lora_dropout", "lora_A"])
def test_restored_by_half_it_drops_once(restored: str) -> None:
    layer = adapter()
    with torch.no_grad():
        layer.lora_A["default"].weight.fill_(1.0)
    replace(layer)
    restore(layer.get_submodule(restored))
    dropout, linear = parts(layer)
    x = torch.ones(4000, WIDTH, requires_grad=True)
    linear(dropout(x)).sum().backward()
    assert x.grad is not None
    assert set(x.grad.unique().div(4).mul(1 - P).round(decimals=3).tolist()) == {0.0, 1.0}
    assert abs(float((x.grad == 0).double().mean()) - P) < 5 * (P * (1 - P) / x.numel()) ** 0.5
    restore(layer)
    assert (type(dropout), type(linear)) == (nn.Dropout, nn.Linear)


def test_the_report() -> None:
    model = nn.Sequential(adapter())
    replace(model)
    lines = str(replacement_report(model)).splitlines()
    ours_ = "fused_dropout._models.replace.peft_layers.LoraDropout"
    first, second = "0.lora_dropout.default", "0.lora_A.default"
    expected = [
        "2 layers replaced",
        f"  {first}: torch.nn.Dropout -> {ours_} (p=0.3), joined with {second}",
        f"  {second}: torch.nn.Linear -> {ours_}Linear (p=0.3), joined with {first}",
    ]
    assert lines == expected
    replace(model)
    assert str(replacement_report(model)).splitlines() == expected
    replace(model, dropout=False)
    assert str(replacement_report(model)).splitlines() == expected


@pytest.mark.parametrize("name", ["Linear4bit", "Linear8bitLt", "Conv2d"])
def test_layers_of_bitsandbytes_too(name: str) -> None:
    layer = adapter()
    layer.__class__ = type(name, (peers.LoraLinear,), {"__module__": "peft.tuners.lora.bnb"})
    replace(layer)
    assert is_joined(layer) == (name != "Conv2d")


def test_a_filter_leaves_both() -> None:
    layer = adapter("a", "b")
    replace(layer, dropout=lambda name, module: "lora_dropout.a" not in name)
    assert type(parts(layer, "a")[0]) is nn.Dropout and type(parts(layer, "a")[1]) is nn.Linear
    assert is_joined(layer, "b")


def variant(layer: Any) -> None:
    layer.lora_variant["default"] = object()


def old_dora(layer: Any) -> None:
    layer.use_dora["default"] = True
    del layer.lora_variant


def hook_on_dropout(layer: Any) -> None:
    layer.lora_dropout["default"].register_forward_hook(lambda *_: None)


def hook_on_linear(layer: Any) -> None:
    layer.lora_A["default"].register_full_backward_hook(lambda *_: None)


def in_place(layer: Any) -> None:
    layer.lora_dropout["default"].inplace = True


def dropout_held_twice(layer: Any) -> None:
    layer.again = layer.lora_dropout["default"]


def linear_held_twice(layer: Any) -> None:
    layer.again = layer.lora_A["default"]


def subclass_of_layer(layer: Any) -> None:
    layer.__class__ = type("Mine", (type(layer),), {"__module__": "mine"})


def own_forward(layer: Any) -> None:
    layer.forward = layer.forward


def own_forward_of_linear(layer: Any) -> None:
    layer.lora_A["default"].forward = layer.lora_A["default"].forward


OBSTACLES = [
    variant,
    old_dora,
    hook_on_dropout,
    hook_on_linear,
    in_place,
    dropout_held_twice,
    linear_held_twice,
    subclass_of_layer,
    own_forward,
    own_forward_of_linear,
]


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_where_something_sees_what_is_between_the_dropout_alone_is_replaced(
    obstacle: Callable[[Any], None],
) -> None:
    layer = adapter()
    obstacle(layer)
    replace(layer)
    assert not is_joined(layer)
    restore(layer)
    assert type(layer.lora_dropout["default"]) is nn.Dropout


def test_a_registered_converter_comes_first() -> None:
    for target, new in (
        (nn.Dropout, lambda layer: ours.Dropout(layer.p, broadcast_dims=(0,))),
        (nn.Linear, lambda layer: "stays"),
    ):
        layer = adapter()
        register_converter(target, new)
        replace(layer)
        assert not is_joined(layer)
        register_converter(target, None)


def test_dropconnect_in_the_same_linear_layer() -> None:
    layer = adapter()
    replace(layer, linear={"lora_A.*": 0.4})
    dropout, linear = parts(layer)
    assert (type(dropout), type(linear)) == (ours.Dropout, ours.DropConnectLinear)
    restore(layer)
    replace(layer)
    with pytest.raises(ValueError, match=r"linear names 'lora_A.default'.*may mean more"):
        replace(layer, linear={"lora_A.default": 0.4})
    assert is_joined(layer)


def test_after_an_error_nothing_is_joined() -> None:
    layer = adapter()
    model = nn.Sequential(layer, nn.Dropout(0.5))
    model[1].p = 1.5
    before = [dict(vars(module)) for module in parts(layer)]
    with pytest.raises(ValueError, match="1: "):
        replace(model)
    assert [vars(module) for module in parts(layer)] == before
    assert [type(module) for module in parts(layer)] == [nn.Dropout, nn.Linear]


@pytest.mark.parametrize("hooked", [False, True])
def test_it_compiles_exports_and_is_traced(hooked: bool) -> None:
    layer = adapter()
    replace(layer)
    if hooked:
        parts(layer)[1].register_forward_hook(lambda module, args, output: output * 1)
    x = torch.randn(6, WIDTH)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(seeded(lambda: compiled(x)), seeded(lambda: layer(x)))
    parts(layer)[0].p = 0.0
    assert torch.equal(compiled(x), layer(x))
    parts(layer)[0].p = P
    exported = torch.export.export(layer, (x,)).module()
    torch.testing.assert_close(seeded(lambda: exported(x)), seeded(lambda: layer(x)))
    traced = torch.fx.symbolic_trace(layer)
    assert torch.equal(seeded(lambda: traced(x)), seeded(lambda: layer(x)))
