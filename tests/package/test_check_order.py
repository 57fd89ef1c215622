"""check: mistakes in the order of layers and functions, and orders that only look like one."""

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
from fused_dropout import check
from fused_dropout.nn import DropPath, GaussianDropout, LockedDropout


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Dropout(),),
        (nn.Dropout(), nn.Identity(), nn.ReLU(), nn.Flatten()),
        (nn.Dropout(), nn.Dropout(0.0)),
        (nn.Dropout(inplace=True), nn.ReLU(inplace=True)),
        (fused_dropout.nn.Dropout(),),
        (nn.Sequential(nn.Linear(6, 6), nn.Dropout()),),
        (GaussianDropout(0.5),),
    ],
)
def test_dropout_before_batchnorm(layers: tuple[nn.Module, ...]) -> None:
    model = perceptron(*layers, nn.BatchNorm1d(6))
    where = "1.1" if isinstance(layers[0], nn.Sequential) else "1"
    expected = [("dropout-before-batchnorm", where)]
    assert found_both_ways(model, X) == expected
    assert found_both_ways(model.eval(), X) == expected
    model.train()
    assert found(Untraceable(model)) == [("dropout-before-batchnorm", f"0.{where}")]
    assert found(nn.Sequential(*model, Untraceable(nn.ReLU()))) == expected


@pytest.mark.parametrize(
    "layers",
    [
        (nn.BatchNorm1d(6), nn.Dropout()),
        (nn.Dropout(0.0), nn.BatchNorm1d(6)),
        (nn.Dropout(), nn.Linear(6, 6), nn.BatchNorm1d(6)),
        (nn.Dropout(), nn.LayerNorm(6)),
        (nn.Dropout(), nn.BatchNorm1d(6, track_running_stats=False)),  # no statistics to be wrong
        (nn.AlphaDropout(), nn.BatchNorm1d(6)),  # keeps the variance
        (DropPath(0.5), nn.BatchNorm1d(6)),
    ],
)
def test_batchnorm_elsewhere(layers: tuple[nn.Module, ...]) -> None:
    assert found_both_ways(perceptron(*layers), X) == []


def test_a_frozen_batchnorm_is_fed_what_it_likes() -> None:
    model = perceptron(nn.Dropout(), nn.BatchNorm1d(6))
    model[2].eval()
    assert found_both_ways(model, X) == []


def test_order_is_that_of_the_forward_not_of_the_attributes() -> None:
    layers = {"drop": nn.Dropout(), "norm": nn.BatchNorm1d(6)}
    good = Forward(lambda self, x: self.drop(self.norm(x)), **layers)
    bad = Forward(lambda self, x: self.norm(F.relu(self.drop(x)).view(-1, 6)), **layers)
    sums = Forward(lambda self, x: self.norm(x + self.drop(x)), **layers)
    assert found_both_ways(bad, X) == [("dropout-before-batchnorm", "drop")]
    for model in (good, sums):
        assert found_both_ways(model, X) == []


class DropoutThatReturnsItsInput(nn.Dropout):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if self.training else input


@pytest.mark.parametrize(
    "drop",
    [
        lambda self, x: self.layer(x),
        lambda self, x: self.other(x),
        lambda self, x: F.dropout(x, 0.5, self.training),
    ],
)
def test_a_branch_beside_the_dropout_is_not_behind_it(drop: Any) -> None:
    """In evaluation mode dropout returns the very tensor that it is given."""
    layers = {"layer": nn.Dropout(), "other": DropoutThatReturnsItsInput()}
    norm = nn.BatchNorm1d(6)
    model = Forward(lambda self, x: (drop(self, x), self.norm(x)), norm=norm, **layers)
    assert found_both_ways(model, X) == []
    model = Forward(lambda self, x: self.norm(drop(self, x)), norm=norm, **layers)
    assert [mistake for mistake, _ in found_both_ways(model, X)] == ["dropout-before-batchnorm"]


def test_functions_have_an_order_too() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.norm(F.dropout(x, 0.5, self.training))

    model = nn.Sequential(nn.ReLU(), Forward(forward, norm=nn.BatchNorm1d(6)))
    assert found_both_ways(model, X) == [("dropout-before-batchnorm", "1")]


def in_place(self: Any, x: Tensor) -> Tensor:
    x = self.drop(x)
    x += 1
    return self.norm(x)


def in_a_view(self: Any, x: Tensor) -> Tensor:
    x = self.drop(x)
    x.view(-1).add_(1)
    return self.norm(x)


def by_index(self: Any, x: Tensor) -> Tensor:
    x = self.drop(x)
    x[0] = 1
    return self.norm(x)


@pytest.mark.parametrize("forward", [in_place, in_a_view, by_index])
def test_what_is_written_to_is_another_tensor(forward: Any) -> None:
    model = Forward(forward, drop=nn.Dropout(), norm=nn.BatchNorm1d(6))
    assert found(model, X) == []


def test_without_inputs_the_order_in_untraceable_code_is_not_known() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.norm(self.drop(x)) if x.sum() > -math.inf else x

    model = Forward(forward, drop=nn.Dropout(0.9), norm=nn.BatchNorm1d(6))
    assert found(model) == [("keep-rate-for-p", "drop")]
    for inputs in (X, [X], (X,), {"x": X}):
        assert found(model, inputs) == [
            ("dropout-before-batchnorm", "drop"),
            ("keep-rate-for-p", "drop"),
        ]


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Dropout(), nn.Dropout(0.2)),
        (nn.Dropout(), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2)),
        (nn.Dropout(), nn.Sequential(nn.Identity(), nn.Dropout(0.2))),
        (LockedDropout(), LockedDropout(0.2)),
        (nn.SELU(), nn.AlphaDropout(), nn.AlphaDropout(0.2)),
    ],
)
def test_dropout_twice(layers: tuple[nn.Module, ...]) -> None:
    model = perceptron(*layers)
    where = f"{len(layers)}.1" if isinstance(layers[-1], nn.Sequential) else str(len(layers))
    assert found_both_ways(model, X) == [("dropout-twice", where)]
    assert "together they drop 0.6" in check(model)[0].why


@pytest.mark.parametrize(
    "layers",
    [
        (nn.Dropout(), nn.Linear(6, 6), nn.Dropout()),
        (nn.Dropout(), nn.Sigmoid(), nn.Dropout()),
        (nn.Dropout(), nn.Dropout(0.0)),
        (nn.Dropout(0.0), nn.Dropout()),
        (nn.Dropout(), DropPath(0.2)),  # as at the end of a transformer's branch
        (nn.Dropout(), LockedDropout()),
    ],
)
def test_two_dropouts_that_do_not_repeat_each_other(layers: tuple[nn.Module, ...]) -> None:
    assert found_both_ways(perceptron(*layers), X) == []


def test_two_dropouts_of_one_tensor_are_not_in_a_row() -> None:
    model = Forward(lambda self, x: self.a(x) + self.b(x), a=nn.Dropout(), b=nn.Dropout())
    assert found_both_ways(model, X) == []


def test_dropout_before_softmax() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Dropout(), nn.Softmax(-1))
    assert found_both_ways(model, X) == [("dropout-before-softmax", "1")]
    model = Forward(lambda self, x: F.log_softmax(self.drop(x), -1), drop=nn.Dropout())
    assert found_both_ways(model, X) == [("dropout-before-softmax", "drop")]
    behind = Forward(lambda self, x: self.drop(x.softmax(-1)) @ x.mT, drop=nn.Dropout())
    assert found_both_ways(behind, X) == []
    assert found_both_ways(nn.Sequential(nn.Dropout(), nn.Linear(6, 6), nn.Softmax(-1)), X) == []


def test_alpha_dropout_without_selu() -> None:
    for activation in (nn.ReLU(), nn.GELU(), nn.Tanh()):
        model = perceptron(activation, nn.Flatten(), nn.AlphaDropout(0.1))
        assert found_both_ways(model, X) == [("alpha-dropout-without-selu", "3")]
    model = Forward(lambda self, x: self.drop(F.relu(x)), drop=nn.FeatureAlphaDropout(0.1))
    assert found_both_ways(model, X) == [("alpha-dropout-without-selu", "drop")]
    for layers in (
        (nn.SELU(), nn.AlphaDropout(0.1)),
        (nn.ReLU(), nn.AlphaDropout(0.0)),
        (nn.ReLU(), nn.Linear(6, 6), nn.AlphaDropout(0.1)),
    ):
        assert found_both_ways(perceptron(*layers), X) == []


def test_torch_models_of_several_parts() -> None:
    encoder = nn.TransformerEncoderLayer(6, 2, 12, dropout=0.1, batch_first=True)
    decoder = nn.TransformerDecoderLayer(6, 2, 12, dropout=0.1, batch_first=True)
    models = nn.TransformerEncoder(encoder, 2), nn.TransformerDecoder(decoder, 2)
    inputs = torch.randn(2, 3, 6)
    for model, args in zip(models, ((inputs,), (inputs, inputs)), strict=True):
        for training in (True, False):
            assert found(model.train(training)) == found(model, args) == []
