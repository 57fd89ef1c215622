"""Wrappers that drop weights, of AWD-LSTM, fastai and PyTorch-NLP, become nn.WeightDrop."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import peers
from torch import Tensor, nn

from fused_dropout import nn as ours
from fused_dropout import replace, replacement_report, restore

HH = ["weight_hh_l0", "weight_hh_l1"]


def lstm() -> nn.LSTM:
    return nn.LSTM(3, 20, num_layers=2)


WRAPPED: dict[str, Callable[[], Any]] = {
    "AWD-LSTM": lambda: peers.WeightDrop(lstm(), HH, 0.3),
    "AWD-LSTM rows": lambda: peers.WeightDrop(lstm(), HH, 0.3, variational=True),
    "fastai": lambda: peers.WeightDropout(lstm(), 0.3, HH),
    "PyTorch-NLP": lambda: peers.WeightDropLSTM(3, 20, 2, weight_dropout=0.3),
}
each_wrapper = pytest.mark.parametrize("name", WRAPPED)


def leaves_of(output: Any) -> list[Tensor]:
    found: list[Tensor] = torch.utils._pytree.tree_leaves(output)
    return found


@each_wrapper
def test_it_becomes_the_bare_module_with_masks_and_back(name: str) -> None:
    torch.manual_seed(0)
    wrapper = WRAPPED[name]()
    cls = type(wrapper)
    parameters = {id(each) for each in wrapper.parameters()}
    x = torch.randn(5, 4, 3)
    model = nn.Sequential(wrapper)
    model(x)  # leaves weights behind, as objects or as attributes
    expected = leaves_of(model.eval()(x))
    names = list(wrapper.state_dict())
    calls: list[str] = []
    wrapper.register_forward_hook(lambda *_: calls.append("hook"))

    replace(model)

    assert model[0] is wrapper and isinstance(wrapper, ours.WeightDrop)
    assert wrapper.weight_drop == dict.fromkeys(HH, 0.3)
    assert wrapper.weight_drop_mode == ("row" if "rows" in name else "connection")
    assert list(wrapper.state_dict()) == list(lstm().state_dict())
    assert {id(each) for each in wrapper.parameters()} == parameters
    record = replacement_report(model).replaced[0]
    assert (record.after, record.p) == ("fused_dropout.nn.WeightDrop(torch.nn.LSTM)", 0.3)
    for other in (wrapper, copy.deepcopy(wrapper)):
        assert all(map(torch.equal, leaves_of(other(x)), expected))
    lstm().load_state_dict(wrapper.state_dict())
    assert calls == ["hook"] * 2
    model.train()
    assert not torch.equal(leaves_of(model(x))[0], leaves_of(model(x))[0])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    leaves_of(model(x))[0].sum().backward()
    optimizer.step()
    trained = leaves_of(model.eval()(x))

    restore(model)

    assert type(wrapper) is cls and list(wrapper.state_dict()) == names
    assert {id(each) for each in wrapper.parameters()} == parameters
    assert all(map(torch.equal, leaves_of(model(x)), trained))
    inner = getattr(wrapper, "module", wrapper)
    assert not inner.training
    model.train()
    assert not torch.equal(leaves_of(model(x))[0], leaves_of(model(x))[0])


@each_wrapper
def test_weights_are_dropped_as_often(name: str) -> None:
    """Gradients are exactly 0 where a weight was dropped; 5 sigma, 6e-7 for each of 8."""
    torch.manual_seed(1)
    wrapper = WRAPPED[name]()
    units = 20 * 80 if "rows" not in name else 80
    for convert in (lambda layer: None, replace):
        convert(wrapper)
        dropped = 0.0
        for _ in range(20):
            wrapper.zero_grad()
            leaves_of(wrapper(torch.randn(6, 4, 3)))[0].square().sum().backward()
            found = {k: w.grad for k, w in wrapper.named_parameters() if "weight_hh_l0" in k}
            (gradient,) = found.values()
            dropped += float((gradient == 0).double().mean()) / 20
        assert abs(dropped - 0.3) < 5 * math.sqrt(0.3 * 0.7 / (20 * units))


def test_other_modules_than_lstms() -> None:
    linear: Any = peers.WeightDropLinear(4, 3, weight_dropout=0.5)
    weight = linear.weight_raw
    replace(linear)
    assert isinstance(linear, ours.WeightDrop) and linear.weight is weight
    assert linear(torch.ones(2, 4)).shape == (2, 3)
    restore(linear)
    assert type(linear) is peers.WeightDropLinear and linear.weight_raw is weight


def test_tensors_replaced_in_between_are_the_new_ones() -> None:
    """As load_state_dict(assign=True) does, or a move to another device where torch is set so."""
    wrapper: Any = peers.WeightDropout(lstm(), 0.3, HH)
    replace(wrapper)
    state = {name: value + 1 for name, value in wrapper.state_dict().items()}
    wrapper.load_state_dict(state, assign=True)
    x = torch.randn(5, 4, 3)
    expected = leaves_of(wrapper.eval()(x))
    restore(wrapper)
    assert torch.equal(wrapper.weight_hh_l0_raw, state["weight_hh_l0"])
    assert torch.equal(wrapper.module.weight_ih_l1, state["weight_ih_l1"])
    assert all(map(torch.equal, leaves_of(wrapper(x)), expected))


def test_what_cannot_is_left() -> None:
    closed: Any = peers.WrapperOfTorchNlp(nn.GRUCell(2, 2), ["weight_hh"], 0.5)
    replace(closed)
    assert "none of its parameters is in the model" in replacement_report(closed).left[0].reason
    hooked: Any = peers.WeightDrop(lstm(), HH, 0.3)
    hooked.module.register_forward_hook(lambda *_: None)
    replace(hooked)
    assert type(hooked) is peers.WeightDrop
    assert "hooks of its own" in replacement_report(hooked).left[0].reason
