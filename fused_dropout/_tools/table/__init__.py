"""The table of ops: what each op is called, called with, compared with, and held to.

`fused-dropout verify` and the tests in tests/table/ run over its rows. A file of this folder has
the rows of one op and its relatives, `OPS` and `OPERATORS`; a new op is a new file.
`python -m fused_dropout._tools.pages docs` makes docs/support.md of them.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType

from fused_dropout._tools.table._row import (
    DTYPES,
    PROPERTIES,
    SHAPES,
    Case,
    Function,
    Layer,
    Op,
    Operator,
    Shape,
    case,
)

__all__ = [
    "DTYPES",
    "PROPERTIES",
    "SHAPES",
    "Case",
    "Function",
    "Layer",
    "Op",
    "Operator",
    "Shape",
    "case",
    "layers",
    "op_named",
    "operators",
    "ops",
    "ops_with",
]


@cache
def ops() -> tuple[Op, ...]:
    """The ops of all files, by the files' names."""
    return tuple(op for file in _files() for op in file.OPS)


@cache
def operators() -> tuple[Operator, ...]:
    """The same of the operators in `torch.ops.fused_dropout`."""
    return tuple(operator for file in _files() for operator in file.OPERATORS)


def _files() -> list[ModuleType]:
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    files = [name for name in names if not name.startswith("_")]
    return [importlib.import_module(f"{__name__}.{name}") for name in files]


def ops_with(held_to: str) -> tuple[Op, ...]:
    """The rows that are held to one of PROPERTIES."""
    if held_to not in PROPERTIES:
        raise ValueError(f"property must be one of {', '.join(PROPERTIES)}, got {held_to!r}")
    return tuple(op for op in ops() if held_to in op.properties)


def op_named(name: str) -> Op:
    """The row of this name."""
    (op,) = (op for op in ops() if op.name == name)
    return op


def layers() -> tuple[Layer, ...]:
    """The modules of all rows."""
    return tuple(layer for op in ops() for layer in op.layers)
