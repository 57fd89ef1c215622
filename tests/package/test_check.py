"""check: modes, rates, what is left behind, arguments. test_check_order.py has the order."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.check_models import (
    Forward,
    Untraceable,
    X,
    found,
    found_both_ways,
    perceptron,
)
from torch import Tensor, nn
from torch.nn import functional as F

import fused_dropout
from fused_dropout import Finding, check, mc_dropout
from fused_dropout._models.check import MISTAKES
from fused_dropout.nn import ConcreteDropout, DropPath, GaussianDropout, LockedDropout


def test_a_model_without_mistakes() -> None:
    layers = nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 6), DropPath(0.2)
    assert found_both_ways(perceptron(*layers), X) == []
    assert found(nn.Linear(3, 3)) == found(nn.Dropout()) == []


# ---- modes --------------------------------------------------------------------------------------


def test_dropout_on_in_evaluation() -> None:
    model = perceptron(nn.Dropout(0.3), nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.2))).eval()
    assert found(model) == []
    model[1].train()
    assert found(model) == [("dropout-on-in-evaluation", "1")]
    assert "mc_dropout" in check(model)[0].instead
    model[2].train()
    assert ("dropout-on-in-evaluation", "2") in found(model)


def test_inside_mc_dropout_the_dropouts_are_named() -> None:
    model = perceptron(nn.Dropout(0.3)).eval()
    with mc_dropout(model):
        assert found(model) == [("dropout-on-in-evaluation", "1")]
    assert found(model) == []


def test_a_part_in_the_wrong_mode_is_one_finding() -> None:
    part = nn.Sequential(*[nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.1)) for _ in range(4)])
    model = perceptron(part).eval()
    part.train()
    (finding,) = check(model)
    assert finding.where == "1"
    assert "4 dropout layers in it (1.0.1, ...)" in finding.why


@pytest.mark.parametrize("training", [True, False])
def test_other_layers_and_rates_of_0_may_have_another_mode(training: bool) -> None:
    others = nn.BatchNorm1d(6), nn.Dropout(0.0), nn.Sequential(nn.Linear(6, 6)), nn.LSTM(6, 6)
    model = perceptron(*others).train(training)
    for layer in others:
        layer.train(not training)
    assert found(model) == []


def test_dropout_off_in_training() -> None:
    model = perceptron(nn.Dropout(0.3))
    model[1].eval()
    assert found(model) == [("dropout-off-in-training", "1")]


def test_a_part_in_evaluation_mode_is_reported_unless_it_is_frozen() -> None:
    loaded = perceptron(nn.Dropout(0.1)).eval()
    model = nn.Sequential(loaded, nn.Linear(6, 2))
    assert found(model) == [("dropout-off-in-training", "0")]
    loaded.requires_grad_(False)
    assert found(model) == []


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: F.dropout(x, 0.5),
        lambda self, x: nn.Dropout(0.5)(x),
        lambda self, x: fused_dropout.functional.dropout(x, 0.5),
        lambda self, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1),
        lambda self, x: F.scaled_dot_product_attention(x, x, x, None, 0.1),
    ],
)
def test_dropout_ignores_mode(forward: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 6), Forward(forward, layer=nn.ReLU()))
    assert found_both_ways(model, X) == [("dropout-ignores-mode", "1")]
    assert found(Untraceable(*model)) == [("dropout-ignores-mode", "1")]
    model = Forward(forward)  # without children
    assert found_both_ways(nn.Sequential(model), X) == [("dropout-ignores-mode", "0")]


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: F.dropout(x, 0.5, self.training),
        lambda self, x: F.dropout(x, 0.5) if self.training else x,
        lambda self, x: F.dropout(x, 0.0),
        lambda self, x: F.alpha_dropout(x, 0.5),  # training=False is its default
        lambda self, x: fused_dropout.functional.dropout(x, 0.5, training=self.training),
        lambda self, x: F.scaled_dot_product_attention(x, x, x),
        lambda self, x: F.scaled_dot_product_attention(
            x, x, x, dropout_p=0.1 if self.training else 0.0
        ),
    ],
)
def test_functions_that_obey_the_mode(forward: Any) -> None:
    model = nn.Sequential(nn.Linear(6, 6), Forward(forward, layer=nn.ReLU()))
    for training in (True, False):
        assert found_both_ways(model.train(training), X) == []


# ---- rates --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "layer",
    [
        nn.Dropout(0.8),
        nn.Dropout2d(0.9),
        fused_dropout.nn.Dropout(0.95),
        DropPath(0.8),
        GaussianDropout(0.9),
        nn.LSTM(6, 6, num_layers=2, dropout=0.8),
        nn.MultiheadAttention(6, 2, dropout=0.9),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_keep_rate_for_p(layer: nn.Module) -> None:
    assert found(nn.ModuleList([layer])) == [("keep-rate-for-p", "0")]


def test_keep_rate_names_the_drop_rate() -> None:
    (finding,) = check(nn.Dropout(0.9))
    assert "p=0.9 drops 90% and keeps 10%" in finding.why
    assert finding.instead == "To keep 90%, set the drop rate 0.1."


@pytest.mark.parametrize("p", [0, 0.0, 0.1, 0.5, 0.7, 0.75])
def test_rates_that_are_in_use(p: float) -> None:
    layers = nn.Dropout(p), DropPath(p), LockedDropout(p), nn.MultiheadAttention(6, 2, dropout=p)
    assert found(nn.ModuleList(layers)) == []


def test_a_learned_rate_is_none() -> None:
    assert found(ConcreteDropout(nn.Linear(6, 6), init_min=0.9, init_max=0.95)) == []


@pytest.mark.parametrize("p", [1, 1.0])
def test_drops_everything(p: float) -> None:
    assert found(perceptron(nn.Dropout(p))) == [("drops-everything", "1")]
    assert found(nn.Sequential(DropPath(p))) == [("drops-everything", "0")]


def test_rates_of_functions() -> None:
    model = Forward(lambda self, x: F.dropout(self.layer(x), 0.9, self.training), layer=nn.ReLU())
    assert found_both_ways(model, X) == [("keep-rate-for-p", "")]
    assert str(check(model)[0]).startswith("the model itself: keep-rate-for-p: p=0.9 in dropout()")


@pytest.mark.parametrize("value", [1.5, -0.1, 50, math.nan])
@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (nn.Dropout(), "p"),
        (fused_dropout.nn.Dropout(), "p"),
        (DropPath(0.1), "drop_prob"),
        (nn.GRU(6, 6, 2, dropout=0.5), "dropout"),
    ],
    ids=["Dropout", "fused Dropout", "DropPath", "GRU"],
)
def test_rate_out_of_range(layer: nn.Module, name: str, value: float) -> None:
    setattr(layer, name, value)
    assert ("rate-out-of-range", "0") in found(nn.ModuleList([layer]))


class GeneralisedMeanPooling(nn.Module):
    """Its p is an exponent, and its own mode decides about dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.p = 3
        self.dropout_rate = 0.5
        self.dropout_scale = 1.0
        self.dropout_keep_prob = 0.9

    def forward(self, x: Tensor) -> Tensor:
        x = x.abs().pow(self.p).mean(-1, keepdim=True).pow(1 / self.p)
        x = F.dropout(x, 1 - self.dropout_keep_prob, self.training).exp()
        return F.dropout(x, self.dropout_rate * self.dropout_scale, self.training)


def test_a_p_that_is_no_rate() -> None:
    layer = GeneralisedMeanPooling()
    assert found(layer) == []
    layer.dropout_rate = 2.0
    assert ("rate-out-of-range", "") in found(layer)


@pytest.mark.parametrize(
    ("layer", "name", "own"),
    [
        (nn.Dropout(), "rate", "p"),
        (nn.Dropout(), "drop_prob", "p"),
        (nn.Dropout(), "dropout", "p"),
        (nn.Dropout2d(), "keep_prob", "p"),
        (fused_dropout.nn.Dropout(), "rate", "p"),
        (DropPath(0.1), "p", "drop_prob"),
        (nn.LSTM(6, 6, 2, dropout=0.5), "p", "dropout"),
        (nn.MultiheadAttention(6, 2, dropout=0.1), "p", "dropout"),
    ],
)
def test_unread_rate(layer: nn.Module, name: str, own: str) -> None:
    setattr(layer, name, 0.3)
    try:
        (finding,) = check(nn.ModuleList([layer]))
        assert finding[:2] == ("unread-rate", "0")
        assert finding.instead == f"Set {own}."
    finally:
        delattr(layer, name)


class AnnealedDropout(nn.Dropout):
    """Reads attributes besides p, one of them by name."""

    def forward(self, input: Tensor) -> Tensor:
        rate = self.p * getattr(self, "keep_rate", 1.0)
        return F.dropout(input, min(rate, self.rate), self.training)


def test_rates_that_are_read() -> None:
    layer = AnnealedDropout(0.4)
    layer.rate, layer.keep_rate = 0.3, 0.5
    layer.p = 0.2
    layer.rate_note, layer.initial_p = "linear", 0.1
    linear = nn.Linear(6, 6)
    linear.rate = 0.3  # not of a dropout layer
    assert found(nn.ModuleList([layer, linear])) == []


def test_rnn_dropout_without_effect() -> None:
    with pytest.warns(UserWarning, match="num_layers"):
        layers = [nn.LSTM(6, 6, dropout=0.5), nn.GRU(6, 6, dropout=0.5)]
    expected = [("rnn-dropout-without-effect", name) for name in ("0", "1")]
    assert found(nn.ModuleList(layers)) == expected
    assert found(nn.ModuleList([nn.LSTM(6, 6), nn.RNN(6, 6, 2, dropout=0.5)])) == []


# ---- what is left behind ------------------------------------------------------------------------


class Counting(nn.Module):
    """Writes to what it holds, in every mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("written", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(()))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.written += 1
        self.replaced = self.replaced + 1
        return x + torch.rand(6)


@pytest.mark.parametrize("inputs", [None, X])
@pytest.mark.parametrize("mode", ["training", "evaluation", "mixed"])
def test_the_model_is_left_as_it_was(inputs: Tensor | None, mode: str) -> None:
    model = perceptron(nn.BatchNorm1d(6), nn.Dropout(), Counting(), nn.LSTM(6, 6, 2, dropout=0.5))
    model = model[:-2].append(Forward(lambda self, x: F.dropout(self.a(x)), a=nn.ReLU()))
    model.train(mode == "training")
    if mode == "mixed":
        model[2].train()
    called: list[Tensor] = []
    model[0].register_forward_hook(lambda module, args, result: called.append(result))
    modules = list(model.modules())
    before = [dict(vars(module)) for module in modules]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    tensors = {
        name: id(value) for name, value in [*model.named_parameters(), *model.named_buffers()]
    }
    state = torch.get_rng_state()
    check(model, inputs)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(model.modules()) == modules
    assert [dict(vars(module)) for module in modules] == before
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules] == hooks
    assert {k: id(v) for k, v in [*model.named_parameters(), *model.named_buffers()]} == tensors
    for name, value in model.state_dict().items():
        assert torch.equal(value, values[name]), name


def test_an_error_of_the_model_is_passed_on_and_nothing_is_left_behind() -> None:
    model = perceptron(nn.BatchNorm1d(6), nn.Dropout())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        check(model, torch.randn(4, 5))
    assert model.training and all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert model(X).requires_grad


def test_gradients_and_inference_mode() -> None:
    model = perceptron(nn.Dropout(), nn.BatchNorm1d(6))
    with torch.inference_mode():
        inputs = torch.randn(4, 6)
        assert found(model, inputs) == found(model) == [("dropout-before-batchnorm", "1")]
    leaf = X.clone().requires_grad_()
    assert found(model, leaf) == found(model)
    assert leaf.grad is None


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_shared_layers_and_scripted_parts() -> None:
    drop = nn.Dropout(0.9)
    assert found(perceptron(drop, nn.Linear(6, 6), drop)) == [("keep-rate-for-p", "1")]
    scripted = torch.jit.script(nn.Linear(6, 6))
    model = perceptron(scripted, nn.Dropout(), nn.BatchNorm1d(6))
    assert ("dropout-before-batchnorm", "2") in found(model)
    assert found(model, X) == [("dropout-before-batchnorm", "2")]


# ---- arguments ----------------------------------------------------------------------------------


def test_findings_read_as_sentences() -> None:
    (finding,) = check(perceptron(nn.Dropout(0.5), nn.BatchNorm1d(6)))
    assert isinstance(finding, Finding)
    assert str(finding).startswith("1: dropout-before-batchnorm: Dropout 1 comes directly before")
    assert str(finding).endswith(finding.instead)


def test_ignore() -> None:
    model = perceptron(nn.Dropout(0.9), nn.BatchNorm1d(6))
    names = ["keep-rate-for-p", "dropout-before-batchnorm"]
    assert [each.mistake for each in check(model)] == names
    assert [each.mistake for each in check(model, ignore=names[:1])] == names[1:]
    assert check(model, ignore=tuple(names)) == []


def test_every_mistake_is_described() -> None:
    text = check.__doc__ or ""
    assert [name for name in MISTAKES if f'- ``"{name}"``:' not in text] == []


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"model": 3}, TypeError, "model must be a torch.nn.Module, got int"),
        ({"model": nn.ReLU}, TypeError, "model must be a torch.nn.Module, got type"),
        ({"example_inputs": "x"}, TypeError, "example_inputs must be a Tensor, a tuple .* got str"),
        ({"ignore": "dropout-twice"}, TypeError, "ignore must be a sequence of names of mistakes"),
        ({"ignore": [1]}, TypeError, "ignore must be a sequence of names of mistakes"),
        ({"ignore": ["twice"]}, ValueError, "ignore's elements must be one of 'dropout-on-in-"),
        (
            {"model": nn.LazyLinear(3), "example_inputs": X},
            ValueError,
            "example_inputs .* call the model once first",
        ),
    ],
)
def test_bad_input(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        check(**{"model": nn.ReLU(), **arguments})


def test_lazy_layers_without_inputs() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.Dropout(), nn.LazyBatchNorm1d())
    assert found(model) == [("dropout-before-batchnorm", "1")]
    assert model[0].has_uninitialized_params()
