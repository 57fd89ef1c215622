"""Private API of torch: where it may be used, and that nothing breaks in a torch without it."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import fused_dropout
from fused_dropout._core import drop_block_gamma, private_torch
from fused_dropout._models import dropout_layers

PACKAGE = Path(fused_dropout.__file__).parent
SCRIPT = Path(__file__).parent / "private_torch_results.py"
NAMES = (
    "_are_functorch_transforms_active",
    "_AutoDispatchBelowAutograd",
    "_len_torch_dispatch_stack",
    "_current_level",
    "_get_creation_meta",
    "get_interpreter_stack",
    "unwrap_if_dead",
    "_pytree",
    "_op",
    "_schema",
    "_version",
)

# ---- fallbacks -----------------------------------------------------------------------------------


def results_without(folder: Path, *names: str) -> dict[str, Any]:
    """What tests/package/private_torch_results.py computes where the names are hidden."""
    file = folder / "results.pt"
    command = [sys.executable, str(SCRIPT), str(file), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = torch.load(file)
    return found


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results with every private name in place."""
    found = results_without(tmp_path_factory.mktemp("results"))
    assert found.pop("fallbacks") == []
    return found


@pytest.mark.parametrize("names", [*[(name,) for name in NAMES], NAMES], ids=lambda n: "+".join(n))
def test_results_do_not_depend_on_private_names(
    names: tuple[str, ...], wanted: dict[str, Any], tmp_path: Path
) -> None:
    """Bit for bit: eager, torch.func, dual numbers, in place, compile, export, make_fx."""
    found = results_without(tmp_path, *names)
    assert found.pop("fallbacks") == list(names)
    assert found.keys() == wanted.keys()
    for part, tensors in wanted.items():
        assert len(found[part]) == len(tensors) > 0
        for place, (ours, expected) in enumerate(zip(found[part], tensors, strict=True)):
            assert ours.dtype == expected.dtype and torch.equal(ours, expected), (part, place)


def fresh_private_torch() -> ModuleType:
    """The module as it is after an import now."""
    spec = importlib.util.spec_from_file_location("another", PACKAGE / "_core" / "private_torch.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_number_of_tensors_without_a_schema() -> None:
    """torch.fx tells the same of every operator, whether its tensors may be None or not."""
    operators = torch.ops.fused_dropout
    names = {name.partition(".")[0] for name in dir(operators) if not name.startswith("_")}
    overloads = [getattr(operators, name).default for name in names - {"name"}]
    assert len(overloads) > 20
    counts = [private_torch.tensor_arguments(overload) for overload in overloads]
    assert counts == [private_torch._tensor_parameters(overload) for overload in overloads]
    assert private_torch._tensor_parameters(operators.dropconnect_linear.default) == 5


def test_without_the_base_of_dropout_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(nn.modules.dropout, "_DropoutNd")
    assert fresh_private_torch().DropoutBase is nn.Dropout
    public = tuple(each for each in dropout_layers._DROPOUT_LAYERS if each.__name__[0] != "_")
    monkeypatch.setattr(dropout_layers, "_DROPOUT_LAYERS", public)
    for kind in ("", "1d", "2d", "3d"):
        assert dropout_layers.drops(getattr(nn, f"Dropout{kind}")(0.5))
    assert dropout_layers.drops(nn.AlphaDropout()) and dropout_layers.drops(
        nn.FeatureAlphaDropout()
    )
    assert not dropout_layers.drops(nn.Linear(2, 2))


def test_without_donated_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._functorch import config

    before = config.donated_buffer
    with private_torch.without_donated_buffers():
        assert config.donated_buffer is False
    assert config.donated_buffer == before
    monkeypatch.delattr(torch._functorch, "config")
    monkeypatch.setitem(sys.modules, "torch._functorch.config", None)
    with private_torch.without_donated_buffers():
        assert config.donated_buffer == before


def test_the_mark_of_constant_functions_is_torchs() -> None:
    def ours() -> None: ...

    def torchs() -> None: ...

    assert private_torch.assume_constant_result(ours) is ours
    torch.compiler.assume_constant_result(torchs)
    assert vars(ours) == vars(torchs) != {}
    assert vars(drop_block_gamma.exact_gamma) == vars(ours)


# ---- where private names are used ----------------------------------------------------------------

# By file, where there is neither a public name nor anything to fall back on. Methods of nn.Module
# that the package overrides count as its own.
MEMBERS = {"_buffers", "_modules", "_parameters"}  # of a module, as its own code names them
ALLOWED = {
    "_ops/_in_place.py": {"_base", "_is_view"},  # torch's own check of leaves, ahead of torch's
    # Public, as torch and Python document them.
    "_ops/_products.py": {"_check"},
    "_models/dropout_layers.py": {"_replace"},
    "functional/_packed_sequence.py": {"_replace"},
    "_tools/convert_check/command.py": {"_asdict"},
    "_tools/convert_check/random_calls.py": {"_python_dispatch"},
    # What a layer that becomes another one, or has a twin, consists of; attributes of our own.
    "_models/replace/__init__.py": {"_fused_dropout_report"},
    "_models/replace/become.py": {
        *MEMBERS,
        "_non_persistent_buffers_set",
        "_fused_dropout_original",
        "_hooks",
    },
    "_models/replace/drop_connect.py": {"_parameters"},
    "_models/replace/linear.py": {"_modules", "_parameters"},
    "_models/replace/peft_layers.py": {"_modules"},
    "_models/replace/weight_drop.py": {"_parameters", "_raw"},
    "_tools/convert_check/probes.py": {*MEMBERS, "_replace"},
    "nn/_dropconnect.py": {"_modules"},
    "nn/_weight_drop.py": {"_modules", "_parameters"},
}


def private_names(tree: ast.AST) -> Iterator[str]:
    """What may be a private name: attributes, imported names, and strings for getattr.

    Not what is imported from the package itself.
    """
    parts = {
        part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values
    }
    for node in ast.walk(tree):
        if node in parts:
            continue  # a piece of a text
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom):
            names = (node.module or "").split(".")
            if names[0] != PACKAGE.name:
                yield from (*names, *(alias.name for alias in node.names))
        elif isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in alias.name.split("."))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def defined_names(tree: ast.AST) -> Iterator[str]:
    """What a file defines itself."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr if ast.unparse(node.value) == "self" else ""


def is_private(name: str) -> bool:
    return re.fullmatch("_[A-Za-z][A-Za-z0-9_]*", name) is not None


def uses_of_private_names(folder: Path) -> dict[str, set[str]]:
    """Of each file, the private names that the package does not define."""
    trees = {path.relative_to(folder): ast.parse(path.read_text()) for path in folder.rglob("*.py")}
    own = {name for tree in trees.values() for name in defined_names(tree)}
    found = {
        path.as_posix(): {name for name in private_names(tree) if is_private(name)} - own
        for path, tree in trees.items()
    }
    return {path: names for path, names in found.items() if names}


def test_private_names_are_used_in_one_file() -> None:
    found = uses_of_private_names(PACKAGE)
    in_one_file = found.pop("_core/private_torch.py")
    assert in_one_file > {"_C", "_op", "_schema", "_current_level", "_DropoutNd"}
    assert found == ALLOWED


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("torch._C.x()", "_C"),
        ("from torch._functorch import config", "_functorch"),
        ("from torch.utils import _pytree as pytree", "_pytree"),
        ("import torch._dynamo as dynamo", "_dynamo"),
        ("getattr(operator, '_schema', None)", "_schema"),
        ("vars(f)['_dynamo_marked_constant'] = True", "_dynamo_marked_constant"),
        ("self._version", "_version"),
    ],
)
def test_uses_are_found(line: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(f"{line}\n")
    (tmp_path / "b.py").write_text("class _B:\n    def __init__(self):\n        self._x = _B._x\n")
    assert uses_of_private_names(tmp_path) == {"a.py": {name}}
