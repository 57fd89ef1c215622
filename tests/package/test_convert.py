"""to_dropconnect and to_linear: what is swapped, and that nothing of the model is lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fused_dropout._models.convert import to_dropconnect, to_linear
from fused_dropout.nn import DropConnectLinear


def small_model() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 6), nn.ReLU(), nn.Sequential(nn.Linear(6, 6, bias=False)), nn.Linear(6, 3)
    )


def test_all_linears_become_dropconnect_with_the_given_settings() -> None:
    model = small_model()
    converted: Any = to_dropconnect(model, 0.3, mask="batch", convention="paper")
    assert converted is model
    layers = [model[0], model[2][0], model[3]]
    assert all(type(layer) is DropConnectLinear for layer in layers)
    for layer in layers:
        assert (layer.p, layer.mask, layer.convention) == (0.3, "batch", "paper")
    assert [layer.bias is None for layer in layers] == [False, True, False]
    assert (model[0].in_features, model[0].out_features) == (8, 6)


def test_parameters_are_the_same_objects_and_checkpoints_fit(place: torch.device) -> None:
    model = small_model()
    names = list(model.state_dict())
    before = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    to_dropconnect(model)

    after = dict(model.named_parameters())
    assert list(model.state_dict()) == names
    assert all(after[name] is before[name] for name in before) and len(after) == len(before)
    small_model().load_state_dict(model.state_dict())
    weight = model[0].weight.clone()
    model(torch.randn(5, 8)).sum().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, weight)


def test_evaluation_is_unchanged_and_training_is_not(place: torch.device) -> None:
    model, input = small_model().eval(), torch.randn(5, 8)
    expected = model(input)
    to_dropconnect(model)
    assert torch.equal(model(input), expected)
    assert not torch.equal(model.train()(input), expected)


def test_round_trip_restores_plain_linears(place: torch.device) -> None:
    model, input = small_model(), torch.randn(5, 8)
    expected, weight = model(input), model[0].weight
    converted: Any = to_linear(to_dropconnect(model))
    assert converted is model
    assert type(model[0]) is nn.Linear and type(model[2][0]) is nn.Linear
    assert model[0].weight is weight
    assert vars(model[0]).keys() == vars(nn.Linear(1, 1)).keys()
    assert torch.equal(model(input), expected)


def test_the_root_itself_may_be_swapped() -> None:
    linear = nn.Linear(4, 2)
    layer = to_dropconnect(linear)
    assert type(layer) is DropConnectLinear and layer.weight is linear.weight
    back = to_linear(layer)
    assert type(back) is nn.Linear and back.weight is linear.weight


def test_filter_gets_qualified_names_and_decides() -> None:
    model, seen = small_model(), []

    def keep_the_head(name: str, linear: nn.Linear) -> bool:
        seen.append((name, linear.out_features))
        return name != "3"

    to_dropconnect(model, filter=keep_the_head)
    assert seen == [("0", 6), ("2.0", 6), ("3", 3)]
    assert type(model[3]) is nn.Linear and type(model[2][0]) is DropConnectLinear
    linear = nn.Linear(2, 2)
    assert to_dropconnect(linear, filter=lambda name, layer: name != "") is linear


def test_layers_and_weights_used_twice_stay_shared() -> None:
    shared = nn.Linear(4, 4)
    model: Any = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared), "c": nn.Linear(4, 4)})
    model["c"].weight = shared.weight
    to_dropconnect(model)
    assert type(model["a"]) is DropConnectLinear and model["a"] is model["b"][0]
    assert model["c"].weight is model["a"].weight is shared.weight


def test_subclasses_and_computed_weights_are_left_alone() -> None:
    attention = nn.MultiheadAttention(4, 2)
    parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    with pytest.warns(FutureWarning, match="weight_norm"):
        hooked = nn.utils.weight_norm(nn.Linear(4, 4))
    model = nn.ModuleList([attention, parametrized, hooked])
    types = [type(attention.out_proj), type(parametrized), nn.Linear]
    to_dropconnect(model)
    assert [type(attention.out_proj), type(model[1]), type(model[2])] == types
    assert model[2] is hooked
    input = torch.randn(3, 4)
    before = hooked(input)
    with torch.no_grad():
        hooked.weight_g.mul_(2)
    torch.testing.assert_close(hooked(input) - hooked.bias, 2 * (before - hooked.bias))


def test_layers_at_any_depth_are_replaced_and_restored() -> None:
    def nested() -> nn.Sequential:
        inner = nn.ModuleDict({"head": nn.Linear(4, 4), "act": nn.ReLU()})
        return nn.Sequential(nn.Sequential(nn.Sequential(inner, nn.Linear(4, 4)), nn.Linear(4, 4)))

    model: Any = nested()
    linears = {name: m for name, m in model.named_modules() if type(m) is nn.Linear}
    assert sorted(linears) == ["0.0.0.head", "0.0.1", "0.1"]
    to_dropconnect(model)
    for name, linear in linears.items():
        layer = model.get_submodule(name)
        assert type(layer) is DropConnectLinear and layer.weight is linear.weight
    to_linear(model)
    for name, linear in linears.items():
        layer = model.get_submodule(name)
        assert type(layer) is nn.Linear and layer.weight is linear.weight


def test_training_flag_requires_grad_dtype_and_hooks_carry_over(place: torch.device) -> None:
    model = small_model().to(torch.float64).eval()
    model[3].train()
    model[0].weight.requires_grad_(False)
    calls = []
    handle = model[0].register_forward_hook(lambda layer, args, output: calls.append(layer))

    to_dropconnect(model)

    assert [model[0].training, model[3].training] == [False, True]
    assert not model[0].weight.requires_grad and model[0].weight.dtype == torch.float64
    input = torch.randn(2, 8, dtype=torch.float64)
    model(input)
    assert calls == [model[0]]
    handle.remove()
    model(input)
    assert len(calls) == 1


@pytest.mark.parametrize("convert", [to_dropconnect, to_linear])
@pytest.mark.parametrize("module", [None, "net", nn.Linear, torch.ones(2)], ids=str)
def test_what_is_no_module_is_named(convert: Any, module: Any) -> None:
    name = type(module).__name__
    with pytest.raises(TypeError, match=f"module must be a torch.nn.Module, got {name}"):
        convert(module)


@pytest.mark.parametrize(
    "arguments",
    [{"p": 1.5}, {"mask": "all"}, {"mask": 0}, {"convention": "x"}, {"mask_storage": "x"}],
)
def test_bad_arguments_change_nothing(arguments: dict) -> None:
    model = small_model()
    with pytest.raises(ValueError, match=next(iter(arguments))):
        to_dropconnect(model, **arguments)
    with pytest.raises(ValueError, match=next(iter(arguments))):
        to_dropconnect(nn.ReLU(), **arguments)
    assert type(model[0]) is nn.Linear


@pytest.mark.parametrize("activation", ["tanh", nn.Tanh()], ids=str)
def test_inference_is_taken_along_and_back(activation: Any) -> None:
    model = nn.Sequential(nn.Linear(8, 6), nn.Linear(6, 3))
    names = list(model.state_dict())
    x = torch.randn(5, 8)
    with torch.no_grad():
        wanted = model[1](model[0](x).tanh()).tanh()
    to_dropconnect(
        model, 0.3, mask_bias=False, inference="gaussian", activation=activation, samples=7, seed=2
    )
    for layer in model:
        assert (layer.mask_bias, layer.inference, layer.samples) == (False, "gaussian", 7)
        assert (layer.activation, layer.seed) == (activation, 2)
    assert list(model.state_dict()) == names
    model.eval()
    assert torch.equal(model(x), model(x))
    to_linear(model)
    assert all(isinstance(layer, nn.Linear) for layer in model)
    assert list(model.state_dict()) == names
    torch.testing.assert_close(model(x), wanted)


def test_wrong_inference_changes_nothing() -> None:
    model = small_model()
    with pytest.raises(ValueError, match="needs activation="):
        to_dropconnect(model, inference="gaussian")
    assert type(model[0]) is nn.Linear
