"""The ops that `fused-dropout bench` measures: what each is compared with, on which problems.

A file of this folder has `OPS`, the rows of one op and its relatives; a new op is a new file. The
scripts of bench/ take operands and peers from here.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from fused_dropout._tools.bench.op import BenchOp


@cache
def bench_ops() -> dict[str, tuple[BenchOp, ...]]:
    """The ops by file, by the files' names."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    files = [name for name in names if not name.startswith("_")]
    return {file: importlib.import_module(f"{__name__}.{file}").OPS for file in files}


def names() -> tuple[str, ...]:
    """What `ops_named` knows: each file, which stands for all of its ops, and each op."""
    return tuple(dict.fromkeys([*bench_ops(), *(op.name for op in _all())]))


def ops_named(name: str) -> tuple[BenchOp, ...]:
    """The ops of the file of this name; or the op of this name, if there is no such file."""
    return bench_ops().get(name) or tuple(op for op in _all() if op.name == name)


def _all() -> list[BenchOp]:
    return [op for ops in bench_ops().values() for op in ops]
