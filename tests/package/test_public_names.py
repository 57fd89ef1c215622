"""What is public: the names in docs/api.md. Everything else is private by name."""

from __future__ import annotations

import importlib
import pkgutil
import re
from types import ModuleType

import pytest
from support.paths import ROOT

import fused_dropout
from fused_dropout._tools.pages.api import MODULES, api_page

PAGE = ROOT / "docs" / "api.md"
PUBLIC = {module.__name__ for module in MODULES}


def listed_names() -> dict[str, list[str]]:
    """By module, the names that the page lists."""
    sections = re.split(r"^## `(.+)`$", PAGE.read_text(), flags=re.MULTILINE)[1:]
    return {
        module: re.findall(r"^\| `(\w+)` \|", text, flags=re.MULTILINE)
        for module, text in zip(sections[::2], sections[1::2], strict=True)
    }


def test_the_page_lists_exactly_the_public_names() -> None:
    listed = listed_names()
    assert listed == {module.__name__: list(module.__all__) for module in MODULES}
    assert len(listed["fused_dropout.functional"]) > 10


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == api_page(), "run python -m fused_dropout._tools.pages docs"


def test_every_other_module_is_private_by_name() -> None:
    found = pkgutil.walk_packages(fused_dropout.__path__, "fused_dropout.")
    names = {module.name for module in found}
    assert names > {"fused_dropout.functional._dropout", "fused_dropout._core.rng"}
    assert {name for name in names if "._" not in name} == PUBLIC - {"fused_dropout"}


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_names_that_are_not_listed_begin_with_an_underscore(module: ModuleType) -> None:
    """A submodule is an attribute too, and must not pass for one of the package's names."""
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name), name
    if hasattr(module, "__path__"):  # a file has the names that it imports as well
        seen = {name for name in vars(module) if not name.startswith("_")} - {"annotations"}
        assert seen == {name for name in module.__all__ if not name.startswith("_")}


@pytest.mark.parametrize("module", ["functional", "nn", "reference"])
def test_a_name_is_what_the_package_says_not_a_module(module: str) -> None:
    package = importlib.import_module(f"fused_dropout.{module}")
    for name in package.__all__:
        assert not isinstance(getattr(package, name), ModuleType), name
