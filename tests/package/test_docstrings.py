"""Docstrings: `help()` of every public name says everything that a caller needs."""

from __future__ import annotations

import doctest
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fused_dropout import reference
from fused_dropout._tools.pages.api import MODULES

SECTIONS = ("Args", "Attributes", "Shape", "Returns", "Warns", "Raises", "Example")
PUBLIC = {
    f"{module.__name__}.{name}".removeprefix("fused_dropout."): getattr(module, name)
    for module in MODULES
    for name in module.__all__
    if callable(getattr(module, name))
}
METHODS = {
    f"{name}.{attribute}": method
    for name, value in PUBLIC.items()
    if inspect.isclass(value)
    for cls in value.__mro__
    if cls.__module__.startswith("fused_dropout.")
    for attribute, method in vars(cls).items()
    if inspect.isfunction(method) and not attribute.startswith("_")
}
OF_TORCH = ("forward", "extra_repr")  # methods that torch.nn.Module describes
ALL = {**PUBLIC, **{k: v for k, v in METHODS.items() if k.rpartition(".")[2] not in OF_TORCH}}


def docstring(value: Any) -> str:
    """Its own docstring, not the one of a base class."""
    own = vars(value).get("__doc__") if inspect.isclass(value) else value.__doc__
    assert own, "it has none"
    return inspect.cleandoc(own)


def sections(text: str) -> dict[str, str]:
    """The indented text below each heading, and what stands before the first heading."""
    parts = re.split(rf"^({'|'.join(SECTIONS)}):\n", "\n" + text, flags=re.MULTILINE)
    return {"": parts[0].strip(), **dict(zip(parts[1::2], parts[2::2], strict=True))}


def described(text: str) -> set[str]:
    """The names at the beginning of a section's entries, `name:` or `name, name:`."""
    entries = re.findall(r"^    (\w+(?:, \w+)*):", text, flags=re.MULTILINE)
    return {name for entry in entries for name in entry.split(", ")}


def parameters(value: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(value).parameters) - {"self"}


def is_record(value: Any) -> bool:
    return inspect.isclass(value) and issubclass(value, tuple)


def of_reference(name: str) -> bool:
    return name.startswith("reference.")


def every(names: Any) -> Any:
    return pytest.mark.parametrize("name", list(names))


@every(ALL)
def test_every_parameter_is_described_and_no_other(name: str) -> None:
    found = sections(docstring(ALL[name]))
    listed = described(found.get("Args", "") + found.get("Attributes", ""))
    if name in PUBLIC or "Args" in found:
        assert listed == parameters(ALL[name])
    else:  # a method may say it in its sentence
        text = docstring(ALL[name])
        assert [argument for argument in parameters(ALL[name]) if argument not in text] == []


@every(PUBLIC)
def test_the_result_is_described(name: str) -> None:
    found = sections(docstring(PUBLIC[name]))
    layer = inspect.isclass(PUBLIC[name]) and issubclass(PUBLIC[name], torch.nn.Module)
    if layer:
        assert "output" in found["Shape"].lower()
    elif not inspect.isclass(PUBLIC[name]):
        assert found["Returns"].strip()


@every(name for name in PUBLIC if not of_reference(name) and not is_record(PUBLIC[name]))
def test_errors_are_described(name: str) -> None:
    named = described(sections(docstring(PUBLIC[name]))["Raises"])
    assert "TypeError" in named
    # No values to refuse; torch.renorm's RuntimeError.
    if name not in ("to_linear", "restore", "max_norm_", "functional.expected_relu"):
        assert "ValueError" in named


@every(ALL)
def test_no_docstring_only_refers_to_another(name: str) -> None:
    text = docstring(ALL[name])
    first = sections(text)[""].partition("\n\n")[0]
    assert not re.search(r"\b(see|as|arguments as|likewise) :\w+:", first, flags=re.IGNORECASE)
    plain = re.sub(r":\w+:`[^`]*`|``[^`]*``", "", first)
    assert len(re.findall(r"[a-zA-Z]{2,}", plain)) >= 3, first
    for reference_to_others in (r"rguments (and errors )?as\b", r"errors as\b", r"^The other arg"):
        assert not re.search(reference_to_others, text, flags=re.MULTILINE)


@every(ALL)
def test_one_mark_up(name: str) -> None:
    """Roles and double backticks, as Sphinx reads them; single backticks mean nothing there."""
    text = re.sub(r"``[^`]+``|:\w+:`[\w.~]+`", "", docstring(ALL[name]))
    assert "`" not in text


@every(name for name in PUBLIC if ">>>" in docstring(PUBLIC[name]))
def test_examples_run(name: str) -> None:
    examples = doctest.DocTestParser().get_doctest(
        docstring(PUBLIC[name]), {"torch": torch}, name, None, None
    )
    said: list[str] = []
    state = torch.get_rng_state()
    with torch.device("cpu"):
        failed, tried = doctest.DocTestRunner(verbose=False).run(examples, out=said.append)
    torch.set_rng_state(state)
    assert tried > 0
    assert not failed, "".join(said)


def test_the_functions_and_layers_have_examples() -> None:
    with_examples = {name for name in PUBLIC if ">>>" in docstring(PUBLIC[name])}
    assert with_examples >= {name for name in PUBLIC if name.startswith("functional.")}


def test_the_reference_describes_itself() -> None:
    assert len([name for name in PUBLIC if of_reference(name)]) == len(reference.__all__) - 1


def test_what_is_found() -> None:
    assert {"mask", "functional.dropout3d", "nn.Dropout2d", "schedules.LinearSchedule"} < set(ALL)
    assert "nn.ConcreteDropout.regulariser" in ALL and "nn.ConcreteDropout.forward" not in ALL
    text = "Does it.\n\nArgs:\n    a, b: two\n        c: no\n    d: one\n\nRaises:\n    E: bad"
    assert described(sections(text)["Args"]) == {"a", "b", "d"}
    assert sections(text)[""] == "Does it."
