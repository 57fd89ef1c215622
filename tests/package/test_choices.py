"""Arguments that take one of some strings: their types and their checks name the same ones."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch

import fused_dropout
from fused_dropout import functional, nn, reference, schedules
from fused_dropout._tools.table import ops

PRODUCT = (fused_dropout, functional, nn, schedules)
IMAGE = torch.randn(2, 3, 6, 6)
ROWS = torch.randn(4, 6)
LINEAR = torch.nn.Linear(6, 5)
WEIGHT, BIAS = LINEAR.weight, LINEAR.bias

# What calls a public name that takes a choice, given as a keyword. Ops that are not
# here are called as the table of ops says.
CALLS: dict[str, Callable[..., Any]] = {
    "fused_dropout.mc_predict": lambda **choice: fused_dropout.mc_predict(
        torch.nn.Dropout(0.5), ROWS, 3, **choice
    ),
    "fused_dropout.to_dropconnect": lambda **choice: fused_dropout.to_dropconnect(
        torch.nn.Linear(6, 5), **with_an_activation(choice)
    ),
    "functional.bias_act_dropout_add": lambda **choice: functional.bias_act_dropout_add(
        ROWS, None, None, 0.5, **choice
    ),
    "functional.dropconnect_conv1d": lambda **choice: functional.dropconnect_conv1d(
        IMAGE[0], torch.ones(2, IMAGE.shape[2], 2), **choice
    ),
    "functional.dropconnect_conv2d": lambda **choice: functional.dropconnect_conv2d(
        IMAGE, torch.ones(2, IMAGE.shape[1], 2, 2), **choice
    ),
    "functional.dropconnect_conv3d": lambda **choice: functional.dropconnect_conv3d(
        IMAGE[None], torch.ones(2, IMAGE.shape[0], 1, 2, 2), **choice
    ),
    "functional.drop_block1d": lambda **choice: functional.drop_block1d(IMAGE[0], 0.3, 2, **choice),
    "functional.drop_block2d": lambda **choice: functional.drop_block2d(IMAGE, 0.3, 2, **choice),
    "functional.drop_block3d": lambda **choice: functional.drop_block3d(
        IMAGE[None], 0.3, 2, **choice
    ),
    "functional.dropconnect_moments": lambda **choice: functional.dropconnect_moments(
        ROWS, WEIGHT, BIAS, **choice
    ),
    "functional.dropconnect_linear": lambda **choice: functional.dropconnect_linear(
        ROWS, WEIGHT, BIAS, **choice
    ),
    "functional.dropout": lambda **choice: functional.dropout(ROWS, **choice),
    "functional.stochastic_depth": lambda **choice: functional.stochastic_depth(
        ROWS, 0.5, **choice
    ),
    "nn.BiasActDropoutAdd": lambda **choice: nn.BiasActDropoutAdd(6, **choice)(ROWS),
    "nn.DropBlock1d": lambda **choice: nn.DropBlock1d(0.3, 2, **choice)(IMAGE[0]),
    "nn.DropBlock2d": lambda **choice: nn.DropBlock2d(0.3, 2, **choice)(IMAGE),
    "nn.DropBlock3d": lambda **choice: nn.DropBlock3d(0.3, 2, **choice)(IMAGE[None]),
    "nn.DropConnectLinear": lambda **choice: nn.DropConnectLinear(
        6, 5, **with_an_activation(choice)
    )(ROWS),
    "nn.Dropout": lambda **choice: nn.Dropout(**choice)(ROWS),
    "nn.StochasticDepth": lambda **choice: nn.StochasticDepth(0.5, **choice)(ROWS),
}


def with_an_activation(choice: dict[str, Any]) -> dict[str, Any]:
    """Two kinds of inference need one."""
    return {"activation": "relu", **choice} if "inference" in choice else choice


def strings_of(annotation: Any) -> tuple[str, ...]:
    """The strings that a type allows: those of a Literal, alone or in a union."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(text for part in get_args(annotation) for text in strings_of(part))
    return ()


def public_functions(module: types.ModuleType) -> Iterator[tuple[str, Any]]:
    """Functions, and constructors of classes, under the name of their module and their own."""
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isfunction(value) or inspect.isclass(value):
            yield f"{module.__name__.removeprefix('fused_dropout.')}.{name}", value


def hints_of(value: Any) -> dict[str, Any]:
    return get_type_hints(inspect.unwrap(value.__init__ if inspect.isclass(value) else value))


FOUND = [
    (name, parameter, strings)
    for module in PRODUCT
    for name, value in public_functions(module)
    for parameter, annotation in hints_of(value).items()
    if (strings := strings_of(annotation))
]


def call_of(name: str) -> Callable[..., Any]:
    """What calls the public name."""
    if name in CALLS:
        return CALLS[name]
    draw = torch.Generator().manual_seed(0)
    module, _, own = name.rpartition(".")
    for op in ops():
        shape, settings = op.small
        if module == "functional" and op.name == own:
            return lambda **choice: op.function(
                *op.operands(shape, draw), **dict(settings) | choice
            )
        for layer in op.layers:
            if module == "nn" and layer.name == own:
                operands = [torch.randn(shape) for shape in layer.shapes]
                return lambda **choice: layer.kind(**dict(layer.arguments) | choice)(*operands)
    pytest.fail(f"{name} takes a choice: say in CALLS how it is called")


def test_every_function_with_a_choice_is_found() -> None:
    assert set(CALLS) <= {name for name, _, _ in FOUND}
    assert len(FOUND) > 25


def test_ops_are_called_as_the_table_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("functional.dropconnect_linear", "nn.DropConnectLinear"):
        monkeypatch.delitem(CALLS, name)
        test_type_and_check_agree(name, "convention", ("inverted", "paper"))


@pytest.mark.parametrize(
    ("name", "parameter", "strings"), FOUND, ids=[f"{name}-{arg}" for name, arg, _ in FOUND]
)
def test_type_and_check_agree(name: str, parameter: str, strings: tuple[str, ...]) -> None:
    for text in strings:
        assert call_of(name)(**{parameter: text}) is not None
    for wrong in ("", "other", strings[0].upper(), strings[-1] + " "):
        with pytest.raises(ValueError) as caught:
            call_of(name)(**{parameter: wrong})
        message = str(caught.value)
        assert message.startswith(parameter), message
        allowed, _, given = message.rpartition("got")
        assert [text for text in strings if repr(text) not in allowed] == [], message
        assert allowed.count("'") == 2 * len(strings), message  # and no others
        assert repr(wrong) in given, message


@pytest.mark.parametrize("module", [*PRODUCT, reference], ids=lambda module: module.__name__)
def test_no_public_function_takes_any_string(module: types.ModuleType) -> None:
    """But for devices, whose names torch knows, and classes that may not be installed."""
    for name, value in public_functions(module):
        for parameter, annotation in hints_of(value).items():
            if parameter not in ("device", "return", "target"):
                assert str not in (annotation, *get_args(annotation)), f"{name}: {parameter}"


def test_the_reference_allows_the_same_strings() -> None:
    ours = {(name.partition(".")[2], parameter): strings for name, parameter, strings in FOUND}
    ours["drop_block", "normalize"] = ours["drop_block2d", "normalize"]
    ours["drop_block", "gamma"] = ours["drop_block2d", "gamma"]
    ours["rows_per_mask", "mask"] = ours["dropconnect_linear", "mask"]
    theirs = {
        (name.partition(".")[2], parameter): strings
        for name, value in public_functions(reference)
        for parameter, annotation in hints_of(value).items()
        if (strings := strings_of(annotation))
    }
    ours["dropconnect_conv", "mask"] = ours["dropconnect_conv2d", "mask"]
    ours["dropconnect_conv", "padding"] = ours["dropconnect_conv2d", "padding"]
    ours["dropconnect_conv", "convention"] = ours["dropconnect_conv2d", "convention"]
    ours["weight_drop", "mode"] = strings_of(get_type_hints(nn.WeightDrop.__new__)["mode"])
    assert len(theirs) == 15
    assert theirs == {key: ours[key] for key in theirs}
    assert tuple(reference.ACTIVATIONS) == ours["bias_act_dropout_add", "activation"]
