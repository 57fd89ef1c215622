"""Hands FLOP formulas to torch.utils.flop_counter.

Importing that module takes long where triton is installed, and few programs count. So the formulas
are registered when somebody imports it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch

from fused_dropout._ops._differentiable import NAMESPACE

COUNTER = "torch.utils.flop_counter"

Formulas = Mapping[str, Callable[..., int]]  # by operator


def register_flops_when_counted(formulas: Formulas) -> None:
    """Registers the formulas now if torch.utils.flop_counter is imported, else when it is."""
    if COUNTER in sys.modules:
        _register(formulas, sys.modules[COUNTER])
    else:
        sys.meta_path.insert(0, _RegisterAfterImport(formulas))


def _register(formulas: Formulas, counter: ModuleType) -> None:
    for name, formula in formulas.items():
        operator = getattr(getattr(torch.ops, NAMESPACE), name)
        counter.register_flop_formula(operator)(formula)


class _RegisterAfterImport(importlib.abc.MetaPathFinder):
    """Finds torch.utils.flop_counter as it would be found without it, and is called once."""

    def __init__(self, formulas: Formulas) -> None:
        self.formulas = formulas

    def find_spec(
        self, fullname: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            _register(self.formulas, module)

        spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec
