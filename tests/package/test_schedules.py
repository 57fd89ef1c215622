"""Rates that change during training."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch

from fused_dropout.nn import (
    ConcreteDropout,
    DropBlock2d,
    DropConnectLinear,
)
from fused_dropout.schedules import LinearSchedule


def make_model() -> torch.nn.Sequential:
    return torch.nn.Sequential(
        DropBlock2d(0.1, 3),
        torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.Dropout(0.5)),
        torch.nn.Flatten(),
        DropConnectLinear(4, 4, p=0.3),
    )


def rates(model: torch.nn.Module) -> list[float]:
    return [module.p for module in model.modules() if hasattr(module, "p")]


def test_goes_linearly_from_start_to_each_module_s_own_rate() -> None:
    model = make_model()
    schedule = LinearSchedule(model, total_steps=4)
    for k in range(7):
        share = min(k / 4, 1)
        assert rates(model) == pytest.approx([0.1 * share, 0.5 * share, 0.3 * share], rel=1e-15)
        assert schedule.get_last_p() == rates(model)
        schedule.step()
    assert rates(model) == [0.1, 0.5, 0.3], "exactly"


def test_one_stop_for_all_downwards_too() -> None:
    model = make_model()
    schedule = LinearSchedule(model, start=0.8, stop=0.2, total_steps=3)
    seen = []
    for _ in range(4):
        seen.append(rates(model))
        schedule.step()
    for share, shown in zip((0.8, 0.6, 0.4, 0.2), seen, strict=True):
        assert shown == pytest.approx([share] * 3)


def test_lists_of_modules_and_shared_ones() -> None:
    layers = [torch.nn.Dropout(0.4), DropBlock2d(0.2, 3)]
    schedule = LinearSchedule([layers[0], torch.nn.Sequential(*layers)], total_steps=2)
    assert len(schedule.get_last_p()) == 2
    schedule.step()
    assert [layer.p for layer in layers] == pytest.approx([0.2, 0.1])
    generator = (layer for layer in layers)
    assert len(LinearSchedule(generator).get_last_p()) == 2


class WithP(torch.nn.Module):
    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flip(-1) if torch.rand(()) < self.p else x


class DenseLayer(torch.nn.Module):
    """Drops by its own mode, as torchvision's DenseNet does."""

    def __init__(self) -> None:
        super().__init__()
        self.drop_rate, self.backdrop = 0.4, 0.3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.rrelu(x, 0.1, self.backdrop, training=self.training)
        return torch.nn.functional.dropout(x, p=self.drop_rate, training=self.training)


def timm_class(name: str) -> type[torch.nn.Module]:
    return type(name, (torch.nn.Module,), {"__module__": "timm.layers.drop"})


def test_numbers_that_are_no_rates_stay_as_they_are() -> None:
    others = [torch.nn.TripletMarginLoss(p=0.5), torch.nn.LPPool1d(1, 2), WithP(0.5)]
    others += [torch.nn.LSTM(2, 2), torch.nn.MultiheadAttention(2, 1), ConcreteDropout()]
    for module in others:
        before = dict(vars(module))
        with pytest.raises(ValueError, match="at least one dropout layer"):
            LinearSchedule(module)
        LinearSchedule(torch.nn.ModuleList([torch.nn.Dropout(0.4), module]))
        assert vars(module) == before


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (torch.nn.Dropout2d(0.4), "p"),
        (torch.nn.LSTM(2, 2, 2, dropout=0.4), "dropout"),
        (torch.nn.GRU(2, 2, 2, dropout=0.4), "dropout"),
        (torch.nn.MultiheadAttention(2, 1, dropout=0.4), "dropout"),
        (timm_class("DropPath")(), "drop_prob"),
        (timm_class("DropBlock2d")(), "drop_prob"),
        (DenseLayer(), "drop_rate"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_layers_of_others_are_scheduled(module: torch.nn.Module, name: str) -> None:
    setattr(module, name, 0.4)
    before = dict(vars(module))
    schedule = LinearSchedule(torch.nn.Sequential(torch.nn.Dropout(0.2), module), total_steps=2)
    assert len(schedule.get_last_p()) == 2
    for rate in (0.0, 0.2, 0.4, 0.4):
        assert getattr(module, name) == rate
        assert {**vars(module), name: 0.4} == before, "nothing else has changed"
        schedule.step()


def test_an_encoder_layer_s_attention_is_scheduled_too() -> None:
    layer = torch.nn.TransformerEncoderLayer(4, 2, 4, dropout=0.4)
    LinearSchedule(layer, stop=0.2, start=0.1)
    assert rates(layer) == [0.1] * 3
    assert layer.self_attn.dropout == 0.1


def test_keeps_an_optimizer_for_trainers_that_ask_for_it() -> None:
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], 0.1)
    schedule = LinearSchedule(torch.nn.Dropout(0.4), optimizer=optimizer)
    assert schedule.optimizer is optimizer
    assert "optimizer" not in schedule.state_dict()
    assert LinearSchedule(torch.nn.Dropout(0.4)).optimizer is None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda state: pickle.loads(pickle.dumps(state))])
def test_goes_on_from_a_checkpoint(copied: Any) -> None:
    model, other = make_model(), make_model()
    schedule = LinearSchedule(model, start=0.05, total_steps=10)
    for _ in range(4):
        schedule.step()
    state = copied(schedule.state_dict())
    for module in other.modules():
        if hasattr(module, "p"):
            module.p = 0.9
    resumed = LinearSchedule(other, total_steps=3)
    resumed.load_state_dict(state)
    for _ in range(8):
        assert rates(other) == rates(model)
        schedule.step()
        resumed.step()
    assert rates(other) == [0.1, 0.5, 0.3]
    assert state["last_step"] == 4, "a copy of its own"


def test_the_layers_follow() -> None:
    layer = DropBlock2d(0.5, 3)
    input = torch.randn(2, 3, 12, 12)
    schedule = LinearSchedule(layer, total_steps=2)
    assert layer(input) is input, "nothing is dropped at the start"
    schedule.step()
    some = (layer(input) == 0).sum()
    assert 0 < some < input.numel()
    assert "p=0.25" in repr(layer)


@pytest.mark.parametrize(
    ("modules", "options", "error", "words"),
    [
        (None, {"start": -0.1}, ValueError, "start, the drop probability, has to be between 0"),
        (None, {"start": "0"}, TypeError, "start must be a float"),
        (None, {"stop": 1.1}, ValueError, "stop, the drop probability"),
        (None, {"stop": math.nan}, ValueError, "stop, the drop probability"),
        (None, {"total_steps": 0}, ValueError, "total_steps must be at least 1, got 0"),
        (None, {"total_steps": 1.5}, TypeError, "total_steps must be an int"),
        (3, {}, TypeError, "modules must be a Module or several, got int"),
        (["a"], {}, TypeError, "modules must be a Module or several, got one str"),
        ([], {}, ValueError, "at least one dropout layer with a rate"),
        (torch.nn.Linear(2, 2), {}, ValueError, "at least one dropout layer with a rate"),
    ],
)
def test_bad_arguments(modules: Any, options: dict, error: type[Exception], words: str) -> None:
    model = make_model()
    with pytest.raises(error, match=words):
        LinearSchedule(model if modules is None else modules, **options)
    assert rates(model) == [0.1, 0.5, 0.3], "as they were"


def test_bad_states() -> None:
    schedule = LinearSchedule(make_model())
    state = LinearSchedule(torch.nn.Dropout(0.2)).state_dict()
    with pytest.raises(ValueError, match="of 1 drop rates, this schedule has 3"):
        schedule.load_state_dict(state)
    with pytest.raises(KeyError):
        schedule.load_state_dict({})
