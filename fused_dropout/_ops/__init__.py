"""What torch is told of the operators: results, derivatives, batches, multiply-adds.

One file an op, with its `OPERATORS`; a new op is a new file. `_differentiable.py`, `_in_place.py`
and `_constant.py` say what follows from them.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator

import torch

from fused_dropout._core import extension
from fused_dropout._ops._constant import Constant, register_constant
from fused_dropout._ops._differentiable import NAMESPACE, Differentiable, register
from fused_dropout._ops._flops import register_flops_when_counted
from fused_dropout._ops._in_place import InPlace, register_in_place

Operator = type[Differentiable] | type[InPlace] | Constant


def operators() -> Iterator[Operator]:
    """The operators of all files, by the files' names."""
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        if not name.startswith("_"):
            yield from importlib.import_module(f"{__name__}.{name}").OPERATORS


def register_operators() -> torch.library.Library:
    """Registers all of it once, after the extension has defined the operators.

    What is registered lives as long as the result.
    """
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    flops = {}
    for op in operators():
        if isinstance(op, Constant):
            register_constant(op, library)
        elif issubclass(op, InPlace):
            register_in_place(op, library)
        else:
            register(op, library)
            if op.flops is not None:
                flops[op.name] = op.flops
    register_flops_when_counted(flops)
    return library


# With the package, not at the first use: torch.compile must find plain operators.
_library = register_operators() if extension.is_loaded() else None
