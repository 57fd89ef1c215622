"""fused-dropout convert-check: passes on what is right, and finds planted mistakes."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support import convert_factories, peers
from torch import Tensor, nn

from fused_dropout import nn as ours
from fused_dropout import register_converter
from fused_dropout._models.replace import converters
from fused_dropout._models.replace.peft_layers import LoraDropout
from fused_dropout._tools.cli import main
from fused_dropout._tools.convert_check import compare as comparing
from fused_dropout._tools.convert_check.compare import Outcome, compare
from fused_dropout.nn import _weight_drop

pytest.importorskip("rich")


def check(factory: str, *options: str) -> int:
    return main(["convert-check", f"support.convert_factories:{factory}", *options])


def outcome_of(model: nn.Module, inputs: Any = None) -> Outcome:
    torch.manual_seed(5)
    return compare(model, inputs, None)


@pytest.fixture(autouse=True)
def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(converters, "_registered", {})
    torch.manual_seed(0)


def test_every_kind_of_layer_passes() -> None:
    """23 layers, at most two rates each: false alarms in 3e-5 of all runs; the seed is fixed."""
    outcome = outcome_of(convert_factories.model_of_all())
    assert outcome.passed and outcome.unexplained is None
    assert len(outcome.sites) == len(peers.LAYERS) + 8
    for site in outcome.sites:
        assert site.before is not None and site.after is not None and site.sigmas is not None
    rates = {site.layer.name: site.after for site in outcome.sites}
    assert rates["all"] == 1 and rates["none"] == 0


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "found.json"
    assert check("with_inputs", "--linear", "linear=0.4", "--json", str(file)) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "convert-check ok: 2 replaced, 1 left" in said
    assert "rnn: torch.nn.LSTM (p=0.2): torch's operator drops between the layers" in said
    found = json.loads(file.read_text())
    assert found["passed"] and found["unexplained"] == {} and found["problems"] == []
    assert [each["name"] for each in found["replaced"]] == ["linear", "drop"]
    linear = found["replaced"][0]
    assert linear["dropped_before"] is None and abs(linear["dropped_after"] - 0.4) < 0.2
    assert found["left"][0]["kind"] == "torch.nn.LSTM"


def test_without_inputs_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("without_inputs", "--linear", "0.5") == 0
    assert "outputs in evaluation were not compared" in " ".join(capsys.readouterr().out.split())


def test_what_the_report_does_not_explain_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert check("with_noise") == 0
    assert "the model itself draws random numbers too, by aten.rand_like" in capsys.readouterr().out


def test_both_layers_of_a_lora_adapter_are_run_together() -> None:
    """Four rates: a false alarm in 2e-6 of all runs; the seed is fixed."""
    layer = peers.LoraLinear(nn.Linear(24, 8), "default", p=0.3)
    layer.lora_dropout["default"].eval()
    outcome = outcome_of(nn.Sequential(layer), ((torch.randn(4, 24),), {}))
    assert outcome.passed and outcome.unexplained == {}
    first, second = outcome.sites
    assert (first.layer.name, second.layer.name) == (
        "0.lora_dropout.default",
        "0.lora_A.default",
    )
    assert first.before is not None and second.before is None
    assert (first.comparisons, second.comparisons) == (2, 1)
    for site in outcome.sites:
        assert site.after is not None and abs(site.after - 0.3) < 0.01


def test_an_adapter_that_drops_twice_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LoraDropout, "forward", ours.Dropout.forward)
    outcome = outcome_of(peers.LoraLinear(nn.Linear(24, 8), "default", p=0.3))
    assert all("standard errors off" in site.problem for site in outcome.sites)


WEIGHTS = ["weight_hh_l0", "weight_ih_l0"]


@pytest.mark.parametrize(
    "wrapper",
    [
        lambda: peers.WeightDrop(nn.LSTM(3, 20), WEIGHTS, 0.3),
        lambda: peers.WeightDrop(nn.LSTM(3, 5), WEIGHTS, 0.3, variational=True),
        lambda: peers.WeightDropout(nn.LSTM(3, 20), 0.3, ["weight_hh_l0"]),
        lambda: peers.WeightDropLSTM(3, 20, 1, weight_dropout=0.3),
    ],
)
def test_masked_weights_are_measured(wrapper: Any) -> None:
    """At most two rates: a false alarm in 1e-6 of all runs; the seed is fixed."""
    model = nn.Sequential(wrapper())
    outcome = outcome_of(model)
    (site,) = outcome.sites
    assert outcome.passed and site.before is None and site.after is not None
    assert site.sigmas is not None and 0 < abs(site.after - 0.3) < 0.07
    assert site.comparisons in (1, 2)


@pytest.mark.parametrize("mode", ["connection", "row", "column"])
def test_each_parameter_has_its_own_rate(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is dropped at another rate is found, however many there are."""

    def converter(layer: nn.Module) -> Any:
        twin = copy.copy(layer)
        return ours.WeightDrop(twin, WEIGHTS, [0.2, 0.5], mode)  # type: ignore[arg-type]

    register_converter(nn.LSTM, converter)
    model = nn.Sequential(nn.LSTM(4, 8))
    (site,) = outcome_of(model).sites
    assert site.problem == "" and site.layer.p is None and site.comparisons == 2
    masked = _weight_drop._masked

    def wrong(weight: Tensor, p: float, mode: Any) -> Tensor:
        return masked(weight, 0.3 if p == 0.2 else p, mode)

    monkeypatch.setattr(_weight_drop, "_masked", wrong)
    (site,) = outcome_of(model).sites
    assert "standard errors off" in site.problem
    assert site.after is not None and abs(site.after - 0.3) < 0.07


class WrongRate(nn.Dropout):
    """Off by a tenth of its rate."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.dropout(input, self.p * 1.1, self.training)


class WrongScale(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * (0.9 if self.training else 1.0)


class WrongInEvaluation(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * (1.0 if self.training else 1 + 1e-6)


@pytest.mark.parametrize("cls", [WrongRate, WrongScale, WrongInEvaluation])
def test_a_wrong_layer_fails(
    cls: type[nn.Dropout], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which layer is wrong, the new one or the old one, is the same to the check."""
    register_converter(cls, lambda layer: ours.Dropout(layer.p))
    model = nn.Sequential(nn.Linear(8, 8), cls(0.5), nn.Dropout(0.5))
    outcome = outcome_of(model, ((torch.randn(4, 8),), {}))
    assert not outcome.passed
    wrong = [site.layer.name for site in outcome.sites if site.problem]
    assert wrong == ([] if cls is WrongInEvaluation else ["1"])
    expected = ["after replace the outputs in evaluation are not those of before"]
    assert outcome.problems == (expected if cls is WrongInEvaluation else [])
    monkeypatch.setattr(convert_factories, "with_inputs", lambda: (model, torch.randn(4, 8)))
    assert check("with_inputs") == 1
    assert "convert-check FAILED" in capsys.readouterr().out


def test_a_restore_that_forgets_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(model: nn.Module) -> nn.Module:
        model.register_buffer("left", torch.zeros(1))
        return model

    monkeypatch.setattr(comparing, "restore", forgetful)
    assert "the names in the state_dict" in outcome_of(nn.Sequential(nn.Dropout(0.1))).problems[0]


def test_a_class_that_it_cannot_measure_is_no_pass(capsys: pytest.CaptureFixture[str]) -> None:
    register_converter(nn.Dropout, lambda layer: nn.Identity())
    outcome = outcome_of(nn.Sequential(nn.Dropout(0.1)))
    assert outcome.sites[0].after is None and outcome.sites[0].sigmas is None
    assert check("with_inputs") == 0
    assert "not measured" in capsys.readouterr().out


def test_the_model_is_what_it_was() -> None:
    model, x = convert_factories.with_inputs()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    random = torch.get_rng_state()
    classes = [type(module) for module in model.modules()]
    compare(model, ((x,), {}), 0.5)
    assert [type(module) for module in model.modules()] == classes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    torch.set_rng_state(random)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["support.convert_factories"], "must be given as MODULE:FACTORY"),
        (["no_such_module:f"], "cannot find no_such_module:f"),
        (["support.convert_factories:missing"], "cannot find support.convert_factories:missing"),
        (["support.convert_factories:nothing"], "must return a Module, or a Module and its inputs"),
        (["support.convert_factories:no_inputs"], "example_inputs must be a Tensor"),
        (
            ["support.convert_factories:with_inputs", "--linear", "x"],
            "--linear must be P or NAME=P",
        ),
        (["support.convert_factories:with_inputs", "--linear", "1.5"], "linear, the drop prob"),
        (["support.convert_factories:with_inputs", "--linear", "x=0.5"], "not so 'x'"),
        (
            ["support.convert_factories:with_inputs", "--linear", "0.5", "--linear", "x=0.5"],
            "--linear must be one P for all layers",
        ),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert-check", *arguments]) == 2
    assert message in capsys.readouterr().err
