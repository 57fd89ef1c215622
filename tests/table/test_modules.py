"""What the modules of all ops share: flags that are bools, copies, rates that can be scheduled."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable

import pytest
import torch
from small_calls import assert_same_bits, built, each_layer, inputs_of, layer_results

from fused_dropout._tools.table import Layer, layers
from fused_dropout.schedules import LinearSchedule

FLAGS = [
    (layer, name)
    for layer in layers()
    for name, parameter in inspect.signature(layer.kind).parameters.items()
    if isinstance(parameter.default, bool)
]


def with_flag(layer: Layer, flag: str, value: object) -> torch.nn.Module:
    return layer.kind(**{**dict(layer.arguments), flag: value})


def test_flags_are_found() -> None:
    found = {(layer.name, flag) for layer, flag in FLAGS}
    assert {("Dropout", "inplace"), ("DropConnectLinear", "bias")} < found


@pytest.mark.parametrize(("layer", "flag"), FLAGS, ids=lambda value: getattr(value, "name", value))
@pytest.mark.parametrize("value", [0.1, 1, None, "yes"])
def test_a_flag_is_a_bool(layer: Layer, flag: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"^{flag} must be a bool, got {value!r}$"):
        with_flag(layer, flag, value)
    for right in (True, False):
        found = getattr(with_flag(layer, flag, right), flag, None)
        assert found is right or not isinstance(found, bool)  # a bias is a tensor


@each_layer()
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))]
)
def test_copies_draw_the_same(
    copied: Callable[[torch.nn.Module], torch.nn.Module], layer: Layer, place: torch.device
) -> None:
    module, inputs = built(layer), inputs_of(layer)
    other = copied(module)
    assert repr(other) == repr(module)
    assert_same_bits(layer_results(other, inputs), layer_results(module, inputs))


@each_layer()
def test_a_rate_is_shown_and_can_be_scheduled(layer: Layer) -> None:
    module = layer.build()
    names = [
        name for name in ("p", "drop_prob") if name in inspect.signature(layer.kind).parameters
    ]
    if not names:
        with pytest.raises(ValueError, match="at least one dropout layer"):
            LinearSchedule(module)
        return
    (name,) = names
    rate, before = getattr(module, name), dict(vars(module))
    assert rate == dict(layer.arguments).get(name, 0.5) and f"{rate}" in repr(module)
    schedule = LinearSchedule(module, total_steps=2)
    for share in (0, 0.5, 1, 1):
        assert getattr(module, name) == share * rate
        assert {**vars(module), name: rate} == before, "nothing else has changed"
        schedule.step()
