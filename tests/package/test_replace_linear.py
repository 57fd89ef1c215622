"""replace(linear=...): which linear layers get DropConnect, and every way to ask for it wrongly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.peers import Conv1D
from torch import nn
from torch.nn.utils import prune

from fused_dropout import functional, replace, replacement_report, restore, to_linear
from fused_dropout._models.replace.transformers_layers import DropConnectConv1D
from fused_dropout.nn import DropConnectLinear


def small_model() -> Any:
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "body": nn.Sequential(nn.Linear(8, 6), nn.Dropout(0.1), nn.Linear(6, 6)),
            "head": nn.Linear(6, 3, bias=False),
        }
    )


def rates(model: nn.Module) -> dict[str, float]:
    layers = (DropConnectLinear, DropConnectConv1D)
    return {name: layer.p for name, layer in model.named_modules() if isinstance(layer, layers)}


@pytest.mark.parametrize(
    ("linear", "expected"),
    [
        (0.3, {"body.0": 0.3, "body.2": 0.3, "head": 0.3}),
        (0, {"body.0": 0.0, "body.2": 0.0, "head": 0.0}),
        ({"head": 0.3}, {"head": 0.3}),
        ({"*": 0.3}, {"body.0": 0.3, "body.2": 0.3, "head": 0.3}),
        ({"body.?": 0.2, "*": 0.3}, {"body.0": 0.2, "body.2": 0.2, "head": 0.3}),
        ({"*": 0.3, "body.2": 0.4, "head": None}, {"body.0": 0.3, "body.2": 0.4}),
        (lambda name, layer: 0.1 if layer.in_features == 6 else None, {"body.2": 0.1, "head": 0.1}),
        ({}, {}),
    ],
)
def test_rates_by_float_name_pattern_and_function(linear: Any, expected: dict[str, float]) -> None:
    model = small_model()
    before = dict(model.named_parameters())
    replace(model, linear=linear, mask="batch", convention="paper", mask_storage="packed")
    assert rates(model) == expected
    for name in expected:
        layer = model.get_submodule(name)
        assert (layer.mask, layer.convention, layer.mask_storage) == ("batch", "paper", "packed")
    after = dict(model.named_parameters())
    assert after.keys() == before.keys() and all(after[name] is before[name] for name in after)
    restore(model)
    assert rates(model) == {} and type(model["head"]) is nn.Linear


def test_a_layer_in_two_places_is_named_by_either() -> None:
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared)})
    replace(model, linear={"b.0": 0.3})
    assert isinstance(shared, DropConnectLinear) and shared.p == 0.3


def test_the_model_may_be_the_layer() -> None:
    layer: Any = nn.Linear(4, 4)
    assert replace(layer, linear=0.3) is layer and type(layer) is DropConnectLinear
    assert to_linear(layer) is layer and type(layer) is nn.Linear
    restore(layer)
    assert type(layer) is nn.Linear


def test_replaced_twice() -> None:
    model = small_model()
    replace(model, linear={"head": 0.3})
    replace(model, linear={"head": 0.3})
    assert rates(model) == {"head": 0.3}
    assert not replacement_report(model).left
    replace(model, linear={"head": 0.6, "body.0": 0.2})
    assert rates(model) == {"head": 0.3, "body.0": 0.2}
    (left,) = replacement_report(model).left
    assert left.name == "head" and "already" in left.reason


def test_conv1d_of_transformers(place: torch.device) -> None:
    """Its weight stays [in, out]; numbers are those of DropConnect with the weight transposed."""
    model = nn.Sequential(Conv1D(5, 7), nn.Linear(5, 2))
    layer: Any = model[0]
    x = torch.randn(3, 4, 7)
    expected = layer(x)
    replace(model, linear=0.5)
    assert type(layer) is Conv1D, "a float means torch.nn.Linear"
    replace(model, linear={"0": 0.5}, mask="row")
    assert type(layer) is DropConnectConv1D and tuple(layer.weight.shape) == (7, 5)
    torch.manual_seed(1)
    output = layer(x)
    torch.manual_seed(1)
    arguments = {"weight": layer.weight.t(), "bias": layer.bias, "p": 0.5, "mask": "row"}
    assert torch.equal(output, functional.dropconnect_linear(x, **arguments))
    output.sum().backward()
    assert layer.weight.grad.shape == layer.weight.shape
    assert torch.equal(layer.eval()(x), expected)
    layer.convention = "paper"
    torch.testing.assert_close(layer(x), 0.5 * expected)
    restore(model)
    assert type(layer) is Conv1D and torch.equal(layer(x), expected)


def parametrized() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))


def pruned() -> nn.Module:
    layer: nn.Module = prune.l1_unstructured(nn.Linear(4, 4), "weight", 2)
    return layer


def sparse() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(layer.weight.detach().to_sparse())
    return layer


def tied() -> nn.Module:
    layer = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4))
    layer[1].weight = layer[0].weight
    return layer


def quantised() -> nn.Module:
    return torch.ao.nn.quantized.dynamic.Linear(4, 4)


def of_integers() -> nn.Module:
    layer = nn.Linear(4, 4, bias=False)
    layer.weight = nn.Parameter(torch.ones(4, 4, dtype=torch.int8), requires_grad=False)
    return layer


class Subclassed(torch.Tensor):
    pass


def of_another_tensor() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.ones(4, 4).as_subclass(Subclassed))
    return layer


def with_its_own_forward() -> nn.Module:
    layer: Any = nn.Linear(4, 4)
    layer.forward = lambda x: x
    return layer


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (parametrized, "may mean more than a torch.nn.Linear"),
        (pruned, "its weight is computed from other parameters"),
        (sparse, "its weight is sparse"),
        (tied, "its weight is tied to another layer's"),
        (quantised, "may mean more than a torch.nn.Linear"),
        (of_integers, "its weight has the dtype torch.int8"),
        (of_another_tensor, "no plain parameter"),
        (with_its_own_forward, "its forward was set on the object"),
        (lambda: nn.MultiheadAttention(4, 2).out_proj, "may mean more than a torch.nn.Linear"),
    ],
)
def test_layers_that_cannot(made: Any, message: str) -> None:
    """Named, they are an error that changes nothing; by a pattern or a float they are reported."""
    layer = made()
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.2), layer)
    name = "2.1" if isinstance(layer, nn.Sequential) else "2"
    classes = {key: type(module) for key, module in model.named_modules()}
    with pytest.raises(ValueError, match=f"linear names '{name}'.*{message}"):
        replace(model, linear={"0": 0.5, name: 0.5})
    assert {key: type(module) for key, module in model.named_modules()} == classes
    for linear in (0.5, {"*": 0.5}):
        replace(model, linear=linear)
        reasons = {left.name: left.reason for left in replacement_report(model).left}
        assert message in reasons[name] and rates(model) == {"0": 0.5}
        restore(model)
        assert {key: type(module) for key, module in model.named_modules()} == classes


def test_a_function_that_names_a_tied_layer() -> None:
    model = tied()
    with pytest.raises(ValueError, match=r"linear names '1'.*tied"):
        replace(model, linear=lambda name, layer: 0.5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"linear": 1.5}, ValueError, "linear, the drop probability"),
        ({"linear": -0.1}, ValueError, "linear, the drop probability"),
        ({"linear": True}, TypeError, "linear must be a drop probability, got True"),
        ({"linear": "head"}, TypeError, "linear must be a float, got str"),
        ({"linear": {"head": 1.5}}, ValueError, r"linear\['head'\], the drop probability"),
        ({"linear": {"head": True}}, TypeError, r"linear\['head'\] must be a drop"),
        ({"linear": {"head": "x"}}, TypeError, r"linear\['head'\] must be a float"),
        ({"linear": {3: 0.5}}, TypeError, "keys must be names or patterns, got 3"),
        ({"linear": {"haed": 0.5}}, ValueError, "not so 'haed'"),
        ({"linear": {"head": 0.5, "fc*": 0.5, "x": 0.1}}, ValueError, "not so 'fc[*]', 'x'"),
        ({"linear": {"body": 0.5}}, ValueError, r"linear\['body'\] must name a linear layer"),
        ({"linear": {"body.1": 0.5}}, ValueError, "got a torch.nn.Dropout"),
        ({"linear": lambda name, layer: True}, TypeError, "must be a drop probability, got True"),
        ({"linear": lambda name, layer: 7}, ValueError, r"linear\('body.0', layer\)"),
        ({"linear": 0.5, "mask": "all"}, ValueError, "mask"),
        ({"linear": 0.5, "convention": "x"}, ValueError, "convention"),
        (
            {"linear": 0.5, "masks": "row"},
            TypeError,
            "replace.*unexpected keyword argument 'masks'",
        ),
        ({"linear": 0.5, "p": 0.5}, TypeError, "unexpected keyword argument 'p'"),
        ({"linear": 0.5, "device": "cpu"}, TypeError, "unexpected keyword argument 'device'"),
        ({"mask": "row"}, ValueError, "mask goes with linear"),
        ({"dropout": 0.5}, TypeError, "dropout must be a bool or a function, got 0.5"),
    ],
)
def test_bad_arguments_change_nothing(
    arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    model = small_model()
    attributes = {name: dict(vars(module)) for name, module in model.named_modules()}
    with pytest.raises(error, match=message):
        replace(model, **arguments)
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == attributes
    assert type(model["body"][1]) is nn.Dropout


def test_an_error_in_the_users_function_is_theirs() -> None:
    def linear(name: str, layer: nn.Module) -> float:
        raise KeyError(name)

    model = small_model()
    with pytest.raises(KeyError, match="body"):
        replace(model, linear=linear)
    assert type(model["body"][1]) is nn.Dropout


def test_an_encoder_layer_reads_past_the_papers_convention() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8)
    replace(layer, linear=0.5, convention="paper")
    left = {each.name: each.reason for each in replacement_report(layer).left}
    assert "TransformerEncoderLayer reads its weight" in left["linear1"]
    assert type(layer.linear1) is nn.Linear
    with pytest.raises(ValueError, match=r"linear names 'linear1'.*reads its weight"):
        replace(layer, linear={"linear1": 0.5}, convention="paper")
    replace(layer, linear={"linear?": 0.5})
    assert rates(layer) == {"linear1": 0.5, "linear2": 0.5}
