"""The tests' own house: what a test file may import, and what tests/README.md must name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from support.paths import TESTS

FILES = sorted(TESTS.rglob("test_*.py"))


def imported(path: Path) -> set[str]:
    """The last parts of the names of the modules that a file imports, and what it takes of them."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.rpartition(".")[2] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {(node.module or "").rpartition(".")[2], *(a.name for a in node.names)}
    return names


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda path: path.stem)
def test_no_file_imports_a_test_file(path: Path) -> None:
    """What several of them need is in tests/support; fixtures are found without an import."""
    assert not imported(path) & {*(file.stem for file in FILES), "conftest"}


def test_test_files_have_names_of_their_own() -> None:
    names = [path.stem for path in FILES]
    assert len(names) == len(set(names)), "pytest imports them by their names"
    assert {path.parent.parent for path in FILES} == {TESTS}, "each is in a folder of tests/"


def test_the_readme_names_every_folder() -> None:
    named = set(re.findall(r"^\| `(\w+)/` \|", (TESTS / "README.md").read_text(), re.MULTILINE))
    assert named == {path.parent.name for path in TESTS.glob("*/*.py")}


@pytest.mark.parametrize(
    "page", sorted(TESTS.rglob("README.md")), ids=lambda page: page.parent.name
)
def test_files_that_a_readme_names_exist(page: Path) -> None:
    found = re.findall(r"`([\w/.]+\.(?:py|cu|cuh|h|cpp|txt|md|sh))`", page.read_text())
    for name in found:
        assert any((folder / name).is_file() for folder in (page.parent, TESTS, TESTS.parent)), name
