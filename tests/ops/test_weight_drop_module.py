"""nn.WeightDrop on a module: names, objects, copies and what forward sets stay as they are."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.weight_drop import (
    CASES,
    assert_same,
    each_case,
    input_of,
    made,
    output_of,
    sequences,
    with_gradients,
    wrapped,
)
from torch import Tensor, nn

from fused_dropout.nn import WeightDrop

pytestmark = pytest.mark.usefixtures("one_thread")


@each_case
def test_parameters_keep_their_names_and_objects(case: str) -> None:
    bare = made(case)
    before, keys = dict(bare.named_parameters()), list(bare.state_dict())
    module: Any = WeightDrop(bare, CASES[case][1], 0.5)
    assert module is bare and isinstance(module, WeightDrop)
    assert isinstance(module, type(made(case)))
    assert type(module).__name__ == type(made(case)).__name__
    output_of(module, input_of(case)).sum().backward()
    after = dict(module.named_parameters())
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
    assert list(module.state_dict()) == keys
    other = made(case)
    other.load_state_dict(module.state_dict())
    module.load_state_dict(other.state_dict())


def by_torch_save(module: Any) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def by_replica(module: Any) -> Any:
    """As torch.nn.parallel.replicate makes them, whose tensors are on GPUs."""
    replicas = {inner: inner._replicate_for_data_parallel() for inner in module.modules()}
    for inner, replica in replicas.items():
        for name, child in inner._modules.items():
            setattr(replica, name, replicas[child])
        for name, weight in inner._parameters.items():
            setattr(replica, name, weight if weight is None else weight * 1.0)
    return replicas[module]


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "pickle, protocol 0": lambda module: pickle.loads(pickle.dumps(module, 0)),
    "torch.save": by_torch_save,
    "replica": by_replica,
}


@each_case
@pytest.mark.parametrize("how", COPIES)
def test_copies_after_a_forward_draw_the_same(case: str, how: str) -> None:
    module, x = wrapped(case), input_of(case)
    output_of(module, x).sum().backward()
    other = COPIES[how](module)
    assert type(other) is type(module) and repr(other) == repr(module)
    assert torch.equal(output_of(other, x), output_of(module, x))
    assert torch.equal(output_of(other.eval(), x), output_of(module.eval(), x))
    if how not in ("replica", "copy"):
        with torch.no_grad():
            for weight in other.parameters():
                weight.add_(1.0)
        assert not torch.equal(output_of(other, x), output_of(module, x))


def test_a_replica_gives_gradients_to_the_module() -> None:
    module, x = wrapped("LSTM"), input_of("LSTM")
    expected = with_gradients(module, x)
    module.zero_grad()
    replica = by_replica(module)
    output = output_of(replica, x)
    (output * torch.arange(output.numel()).view(output.shape).cos()).sum().backward()
    assert_same([output.detach(), *(w.grad for w in module.parameters())], expected)


@each_case
def test_remove_makes_it_bare(case: str) -> None:
    module, x = wrapped(case), input_of(case)
    output_of(module, x)
    assert WeightDrop.remove(module) is module
    bare = made(case)
    assert type(module) is type(bare) and repr(module) == repr(bare)
    assert {*vars(module)} == {*vars(bare)}
    assert torch.equal(output_of(module, x), output_of(bare, x))
    with pytest.raises(TypeError, match="module must be a WeightDrop, got"):
        WeightDrop.remove(module)
    WeightDrop(module, CASES[case][1])  # and back


def test_it_survives_what_models_go_through() -> None:
    """to(), assign, requires_grad_, flatten_parameters: the flat weights are up to date."""
    module, x = wrapped("LSTM"), input_of("LSTM")
    module.double()
    module.flatten_parameters()
    assert output_of(module, x.double()).dtype == torch.float64
    module.float()
    other = wrapped("LSTM")
    other.load_state_dict({k: 2 * v for k, v in module.state_dict().items()}, assign=True)
    again = wrapped("LSTM")
    again.load_state_dict(other.state_dict())
    assert torch.equal(output_of(other, x), output_of(again, x))
    assert all(a is b for a, b in zip(other._flat_weights, other.parameters(), strict=True))
    again.requires_grad_(False)
    assert not output_of(again, x).requires_grad


def test_training_does_not_touch_the_flat_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU to flatten weights anew moves the parameters in memory, and the masked ones too."""
    module, x = wrapped("LSTM"), input_of("LSTM")
    module.load_state_dict({k: 2 * v for k, v in module.state_dict().items()}, assign=True)
    module(x)  # as a bare LSTM flattens assigned weights in its next forward
    flattened = []
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", lambda rnn: flattened.append(rnn))
    for _ in range(2):
        module(x)[0].sum().backward()
    assert flattened == []


class FlattensItself(nn.GRU):
    def forward(self, x: Tensor) -> Any:  # type: ignore[override]
        self._init_flat_weights()
        return super().forward(x)


def test_a_layer_that_lists_its_weights_in_forward() -> None:
    module: Any = WeightDrop(FlattensItself(4, 6), "weight_hh_l0", 0.5)
    x = sequences()
    assert not torch.equal(output_of(module, x, 1), output_of(module, x, 2))
    assert all(a is b for a, b in zip(module._flat_weights, module.parameters(), strict=True))


class CallsItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1000))

    def forward(self, depth: int) -> Tensor:
        result: Tensor = self.weight * self(depth - 1) if depth else self.weight
        return result


def test_a_module_that_calls_itself_drops_once() -> None:
    module: Any = WeightDrop(CallsItself(), "weight", 0.5)
    assert 400 < module(2).count_nonzero() < 600
    assert {0.0, 8.0} == {*module(2).tolist()}


@pytest.mark.parametrize("case", ["LSTM", "Block", "Linear"])
def test_an_exception_leaves_the_module_as_it_was(case: str) -> None:
    module, x = wrapped(case), input_of(case)
    before = {name: id(weight) for name, weight in module.named_parameters()}
    expected = output_of(module, x)
    with pytest.raises((RuntimeError, ValueError)):
        module(torch.randn(5, 3, 7))
    assert {name: id(weight) for name, weight in module.named_parameters()} == before
    assert torch.equal(output_of(module, x), expected)


def test_what_forward_sets_is_set() -> None:
    module = wrapped("Block")
    for calls in (1, 2, 3):
        module(sequences())
        assert module.calls == calls and module.hidden.shape == (5, 3, 5)


class Odd(nn.Module):
    """Changes itself in forward in every way."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(()))
        self.old = 1

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "old"):
            del self.old
            self.late = nn.Linear(4, 4)
            self.scale = nn.Parameter(torch.ones(()))
        self.seen = self.seen + 1
        return self.late(self.layer(x)) * self.scale


def test_a_module_that_changes_itself() -> None:
    module: Any = WeightDrop(Odd(), "layer.weight", 0.5)
    weight = module.layer.weight
    for calls in (1, 2):
        module(torch.ones(2, 4))
        assert module.seen == calls and not hasattr(module, "old")
    assert {"scale", "late.weight", "layer.weight"} < {*dict(module.named_parameters())}
    assert module.layer.weight is weight and type(module.layer) is nn.Linear


def test_two_threads() -> None:
    """Each runs on its own masks; nothing of the module changes on the way."""
    module, x = wrapped("LSTM"), torch.randn(9, 3, 4)
    weights = {name: id(weight) for name, weight in module.named_parameters()}
    outputs: list[Tensor] = []
    seen = []

    def run() -> None:
        for _ in range(8):
            outputs.append(module(x)[0].detach())
            seen.append({name: id(weight) for name, weight in module.named_parameters()})

    running = [threading.Thread(target=run) for _ in range(3)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert len(outputs) == 24 and all(names == weights for names in seen)
    assert torch.equal(output_of(module.eval(), x), output_of(made("LSTM").eval(), x))
