"""The package's modules: who may import whom, no circles, few things at the first level."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import fused_dropout

FOLDER = Path(fused_dropout.__file__).parent
PACKAGE = FOLDER.name
AT_MOST_AT_THE_FIRST_LEVEL = 16
Imports = dict[str, set[str]]  # by module, the modules that it imports


def modules(folder: Path) -> dict[str, ast.Module]:
    """The source of every module, by its name; a folder's is that of its __init__."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = (folder.name, *path.relative_to(folder).with_suffix("").parts)
        name = ".".join(part for part in parts if part != "__init__")
        found[name] = ast.parse(path.read_text())
    return found


def imported_names(tree: ast.AST) -> Iterator[str]:
    """What a module imports, inside functions too: `a.b` for `import a.b` and `from a import b`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the whole path"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_within(trees: dict[str, ast.Module]) -> Imports:
    """For each module, the others of these modules that it imports."""

    def module_of(name: str) -> str | None:
        candidates = (name, name.rpartition(".")[0])  # `b` of `from a import b` is a module or not
        return next((candidate for candidate in candidates if candidate in trees), None)

    return {
        importer: {
            imported
            for name in imported_names(tree)
            if (imported := module_of(name)) not in (None, importer)
        }
        for importer, tree in trees.items()
    }


def circle(imports: Imports) -> list[str]:
    """The modules of one circle; [] if there is none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def of_first_level(imports: Imports) -> Imports:
    """The same between the files and folders directly in the package."""

    def place(module: str) -> str:
        return ".".join(module.split(".")[:2])

    merged: Imports = {}
    for importer, imported in imports.items():
        others = {place(name) for name in imported} - {place(importer)}
        merged.setdefault(place(importer), set()).update(others)
    return merged


def wing(module: str) -> str:
    """The first folder below the package, or the file."""
    return module.split(".")[1] if "." in module else ""


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return modules(FOLDER)


@pytest.fixture(scope="module")
def imports(trees: dict[str, ast.Module]) -> Imports:
    found = imports_within(trees)
    assert f"{PACKAGE}._core.checks" in found[f"{PACKAGE}.functional._dropout"]
    assert f"{PACKAGE}.functional" in found[PACKAGE]
    return found


def test_no_circle(imports: Imports) -> None:
    assert circle(imports) == []
    assert circle(of_first_level(imports)) == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("from p import b", "import p.a"),
        ("def f():\n    from p.b import g", "from p.a import f"),
        ("import p.b.c", "from p import a"),
    ],
)
def test_circles_are_found(first: str, second: str) -> None:
    sources = {"p": "from p import a", "p.a": first, "p.b": second, "p.b.c": second}
    found = imports_within({name: ast.parse(text) for name, text in sources.items()})
    assert set(circle(found)) <= {"p.a", "p.b", "p.b.c"} and circle(found)
    assert circle(of_first_level(found))


def test_the_first_level_is_small() -> None:
    entries = {path.name for path in FOLDER.iterdir() if path.suffix in ("", ".py")}
    entries -= {"__pycache__"}
    assert len(entries) <= AT_MOST_AT_THE_FIRST_LEVEL, sorted(entries)


def test_the_library_imports_no_tool(imports: Imports) -> None:
    for importer, imported in imports.items():
        if wing(importer) not in ("_tools", "__main__"):
            assert not {name for name in imported if wing(name) == "_tools"}, importer


def test_reference_and_product_import_nothing_of_each_other(imports: Imports) -> None:
    for importer, imported in imports.items():
        if wing(importer) == "reference":
            assert {wing(name) for name in imported} <= {"reference"}, importer
        elif wing(importer) not in ("", "_tools"):  # the root hands both on, tools compare them
            assert not {name for name in imported if wing(name) == "reference"}, importer


def test_the_library_needs_torch_and_numpy_only(trees: dict[str, ast.Module]) -> None:
    for module, tree in trees.items():
        others = {name.partition(".")[0] for name in imported_names(tree)}
        others -= {*sys.stdlib_module_names, PACKAGE, "torch", "numpy"}
        if wing(module) == "_tools":
            others -= {"rich", "matplotlib", "sklearn", "scipy", "torchvision", "triton"}
        assert not others, module


def test_importing_the_package_imports_no_tool() -> None:
    code = f"import sys, {PACKAGE}; print(*[name for name in sys.modules if '_tools' in name])"
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert not [name for name in found.split() if name.startswith(PACKAGE)]
