"""replace and restore: what of a layer stays, what the report says, and the way back."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fused_dropout
from fused_dropout import nn as ours
from fused_dropout import replace, replacement_report, restore

NAMES = ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout")
SHAPES = {"Dropout1d": (5, 6, 3), "Dropout2d": (5, 6, 2, 2), "Dropout3d": (5, 6, 2, 2, 2)}
HOOKS = (
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
    "register_state_dict_pre_hook",
    "register_state_dict_post_hook",
    "register_load_state_dict_pre_hook",
    "register_load_state_dict_post_hook",
)


def small_model() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 6), nn.Dropout(0.3), nn.ReLU(), nn.Linear(6, 3))


def save_and_load(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


COPIES: list[Callable[[Any], Any]] = [
    lambda model: model,
    copy.deepcopy,
    lambda model: pickle.loads(pickle.dumps(model)),
    save_and_load,
]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_layers_of_torch_become_ours_of_the_same_name(name: str, inplace: bool) -> None:
    layer = getattr(nn, name)(0.3, inplace)
    assert replace(layer) is layer
    assert type(layer) is getattr(ours, name)
    assert (layer.p, layer.inplace) == (0.3, inplace)
    x = torch.randn(SHAPES.get(name, (5, 6, 3)))
    torch.manual_seed(1)
    expected = getattr(ours, name)(0.3)(x.clone())
    torch.manual_seed(1)
    assert torch.equal(layer(x.clone()), expected)
    assert layer.eval()(x) is x
    assert restore(layer) is layer and type(layer) is getattr(nn, name)
    assert vars(layer).keys() == vars(getattr(nn, name)()).keys()


def test_the_report() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.3), nn.LSTM(4, 4, 2, dropout=0.2))
    assert replace(model, linear={"0": 0.4}) is model
    report = replacement_report(model)
    assert [tuple(record) for record in report.replaced] == [
        ("0", "torch.nn.Linear", "fused_dropout.nn.DropConnectLinear", 0.4, None),
        ("1", "torch.nn.Dropout", "fused_dropout.nn.Dropout", 0.3, None),
    ]
    (left,) = report.left
    assert left[:3] == ("2", "torch.nn.LSTM", 0.2) and "between the layers" in left.reason
    assert str(report).splitlines() == [
        "2 layers replaced",
        "  0: torch.nn.Linear -> fused_dropout.nn.DropConnectLinear (p=0.4)",
        "  1: torch.nn.Dropout -> fused_dropout.nn.Dropout (p=0.3)",
        "1 place left as they are",
        f"  2: torch.nn.LSTM (p=0.2): {left.reason}",
    ]
    assert replacement_report(copy.deepcopy(model)) == report
    replace(model)
    assert replacement_report(model) == report, "a second call finds all done, and says all"
    restore(model)
    for other in (model, nn.Dropout()):
        with pytest.raises(ValueError, match="replace was not called with it"):
            replacement_report(other)


def test_a_layer_stays_the_object_that_it_is() -> None:
    """Whoever holds it holds ours: several parents, a list, a bound method."""
    shared = nn.Dropout(0.3)
    model: Any = nn.ModuleDict({"a": shared, "b": nn.ModuleList([shared, nn.Sequential(shared)])})
    in_a_list, call = [shared], shared.forward
    replace(model)
    assert model["a"] is shared and model["b"][0] is shared and model["b"][1][0] is shared
    assert type(in_a_list[0]) is ours.Dropout
    assert call.__self__ is shared
    assert [record.name for record in replacement_report(model).replaced] == ["a"]
    restore(model)
    assert type(shared) is nn.Dropout


def test_hooks_flags_and_own_attributes_stay() -> None:
    model: Any = small_model().double()
    model[1].eval()
    model[1].note = {"of": "mine"}
    model[1].register_buffer("count", torch.ones(3))
    model[0].register_buffer("mine", torch.ones(2), persistent=False)
    model[0].add_module("probe", nn.Linear(1, 1))
    model[0].weight.requires_grad_(False)
    note = model[1].note
    calls: list[str] = []
    handles = [
        getattr(model[1], name)(lambda *_, name=name, **__: calls.append(name)) for name in HOOKS
    ]
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}

    replace(model, linear=0.5)

    assert type(model[1]) is ours.Dropout and not model[1].training and model[0].training
    assert model[1].note is note
    found = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert found.keys() == tensors.keys() and all(found[name] is tensors[name] for name in found)
    assert not model[0].weight.requires_grad
    assert type(model[0]) is type(model[0].probe) is ours.DropConnectLinear
    assert "0.mine" not in model.state_dict()

    def run() -> list[str]:
        calls.clear()
        model(torch.randn(2, 8, dtype=torch.float64, requires_grad=True)).sum().backward()
        model.load_state_dict(model.state_dict())
        return sorted(calls)

    assert run() == sorted(HOOKS)
    added: list[str] = []
    model[1].register_forward_hook(lambda *_: added.append("late"))
    restore(model)
    assert run() == sorted(HOOKS) and added == ["late"]
    for handle in handles:
        handle.remove()
    assert run() == []


@pytest.mark.parametrize("copied", COPIES)
def test_restore_gives_back_what_was_there(copied: Callable[[Any], Any]) -> None:
    """After training, a loaded checkpoint and a new rate, on a copy too."""
    model = small_model()
    classes = [type(layer) for layer in model]
    attributes = [set(vars(layer)) for layer in model]
    names = list(model.state_dict())
    replace(model, linear=0.5)
    model = copied(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 8)).square().sum().backward()
        optimizer.step()
    model.load_state_dict({k: v + 1 for k, v in model.state_dict().items()})
    model[1].p = 0.25
    x, state = torch.randn(5, 8), {k: v.clone() for k, v in model.state_dict().items()}
    expected = model.eval()(x)

    restore(model)

    assert [type(layer) for layer in model] == classes
    assert [set(vars(layer)) for layer in model] == attributes
    assert list(model.state_dict()) == names
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model[1].p == 0.25, "what was set since is kept"
    assert torch.equal(model(x), expected)


def test_only_the_layers_asked_for() -> None:
    model = nn.ModuleDict({"a": nn.Dropout(0.1), "b": nn.Dropout(0.2), "c": nn.Linear(2, 2)})
    replace(model, dropout=lambda name, layer: name == "b", linear={"c": 0.5})
    assert type(model["a"]) is nn.Dropout and type(model["b"]) is ours.Dropout
    (left,) = replacement_report(model).left
    assert left == ("a", "torch.nn.Dropout", 0.1, "dropout= leaves it")
    restore(model)
    replace(model, dropout=False)
    assert replacement_report(model) == ((), ())
    assert type(model["b"]) is nn.Dropout


def test_our_own_layers_are_no_business_of_either() -> None:
    class Mine(ours.Dropout):
        pass

    model = nn.Sequential(ours.Dropout(0.1), Mine(0.2), ours.DropConnectLinear(2, 2, p=0.3))
    classes = [type(layer) for layer in model]
    replace(model, linear=0.5)
    assert replacement_report(model) == ((), ())
    restore(model)
    assert [type(layer) for layer in model] == classes


def test_subclasses_are_left_and_named() -> None:
    class Louder(nn.Dropout):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    model = nn.Sequential(
        Louder(0.2),
        nn.ao.nn.quantized.Dropout(0.1)
        if hasattr(nn, "ao")
        else torch.ao.nn.quantized.Dropout(0.1),
    )
    replace(model)
    report = replacement_report(model)
    assert not report.replaced and type(model[0]) is Louder
    assert [left.name for left in report.left] == ["0", "1"]
    assert all("subclass of torch.nn.Dropout" in left.reason for left in report.left)


def test_a_forward_that_was_set_on_the_layer_is_respected() -> None:
    """Packages that offload or log do that; its calls are bound to the old class."""
    layer: Any = nn.Dropout(0.3)
    old = layer.forward
    layer.forward = lambda x: old(x) + 1
    model = nn.Sequential(layer)
    replace(model)
    assert type(layer) is nn.Dropout
    assert "forward was set" in replacement_report(model).left[0].reason


class Functional(nn.Module):
    """Drops by functions in several ways."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.dropout_p = rate
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(x)
        x = nn.functional.scaled_dot_product_attention(
            x, x, x, dropout_p=self.dropout_p if self.training else 0.0
        )
        return self._last(x)

    def _last(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, self.dropout_p, training=self.training)


class AlwaysOn(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.alpha_dropout(x, 0.1, True)


class Quiet(nn.Module):
    """Mentions dropout, and leaves it to its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.dropouts = nn.ModuleList([nn.Dropout(0.1)])

    def forward(self, x: Tensor) -> Tensor:
        for dropout in self.dropouts:
            x = dropout(x)
        return nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=0.0)


def test_what_no_layer_holds_is_explained() -> None:
    one_layer = nn.GRU(4, 4)
    one_layer.dropout = 0.3  # between layers, of which there is one
    model = nn.ModuleDict(
        {
            "attention": nn.MultiheadAttention(4, 2, dropout=0.15),
            "calm": nn.MultiheadAttention(4, 2),
            "lstm": nn.LSTM(4, 4, 2, dropout=0.2),
            "one layer": one_layer,
            "functional": Functional(0.25),
            "zero": Functional(0.0),
            "always": AlwaysOn(),
            "quiet": Quiet(),
        }
    )
    left = {each.name: each for each in replacement_report(replace(model)).left}
    assert {name: each.p for name, each in left.items()} == {
        "attention": 0.15, "lstm": 0.2, "functional": 0.25, "always": None,
    }  # fmt: skip
    reason = left["functional"].reason
    assert "nn.functional.scaled_dot_product_attention(dropout_p=)" in reason
    assert "nn.functional.dropout" in reason
    assert "alpha_dropout" in left["always"].reason


def test_a_transformer_in_evaluation_and_in_training() -> None:
    torch.manual_seed(0)
    model = nn.Transformer(16, 2, 1, 1, 32, dropout=0.2, batch_first=True)
    x = torch.randn(2, 5, 16)
    with torch.no_grad():  # the encoder's fast path
        fast = model.eval()(x, x)
    expected = model(x, x)
    replace(model.train())
    report = replacement_report(model)
    assert len(report.replaced) == 7 and {each.p for each in report.replaced} == {0.2}
    assert [each.kind for each in report.left] == ["torch.nn.MultiheadAttention"] * 3
    assert not torch.equal(model(x, x), model(x, x))
    assert torch.equal(model.eval()(x, x), expected)
    with torch.no_grad():
        assert torch.equal(model(x, x), fast)


def test_a_language_model() -> None:
    class LanguageModel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.4)
            self.embed = nn.Embedding(20, 8)
            self.rnn = nn.LSTM(8, 8, 2, dropout=0.3)
            self.head = nn.Linear(8, 20)

        def forward(self, tokens: Tensor) -> Tensor:
            output: Tensor = self.head(self.drop(self.rnn(self.drop(self.embed(tokens)))[0]))
            return output

    torch.manual_seed(0)
    model, tokens = LanguageModel().eval(), torch.randint(20, (5, 3))
    expected, state = model(tokens), copy.deepcopy(model.state_dict())
    replace(model)
    assert [each.name for each in replacement_report(model).replaced] == ["drop"]
    assert [each.name for each in replacement_report(model).left] == ["rnn"]
    assert torch.equal(model(tokens), expected)
    assert torch.isfinite(model.train()(tokens)).all()
    restore(model).eval()
    assert torch.equal(model(tokens), expected)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("call", [replace, restore, replacement_report])
@pytest.mark.parametrize("module", [None, nn.Linear, torch.ones(2)], ids=str)
def test_what_is_no_module_is_named(call: Any, module: Any) -> None:
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got"):
        call(module)


def test_nothing_of_the_names_is_hidden_by_the_package() -> None:
    """`replace` is the function, not the folder that it is in."""
    assert callable(fused_dropout.replace) and callable(fused_dropout.restore)
