"""FLOP formulas of the products, for torch.utils.flop_counter.

Importing that module takes long where triton is installed, and few programs count. So the formulas
are registered when somebody imports it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch

from fused_dropout._ops._differentiable import NAMESPACE

COUNTER = "torch.utils.flop_counter"

Shape = Sequence[int]


def _forward(input: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return 2 * input[0] * weight[0] * weight[1]


def _d_one(grad_output: Shape, operand: Shape, *_: Any, **__: Any) -> int:
    return 2 * grad_output[0] * grad_output[1] * operand[1]


def _d_both(grad_output: Shape, input: Shape, *_: Any, **__: Any) -> int:
    return 2 * _d_one(grad_output, input)


# Masks are not counted, as torch counts no dropout: only the multiply-adds of the dense layer.
FORMULAS: dict[str, Callable[..., int]] = {
    "dropconnect_linear": _forward,
    "dropconnect_linear_d_input": _d_one,
    "dropconnect_linear_d_weight": _d_one,
    "dropconnect_linear_d_both": _d_both,
}


def register_flops_when_counted() -> None:
    """Registers the formulas now if torch.utils.flop_counter is imported, else when it is."""
    if COUNTER in sys.modules:
        _register(sys.modules[COUNTER])
    else:
        sys.meta_path.insert(0, _RegisterAfterImport())


def _register(counter: ModuleType) -> None:
    for name, formula in FORMULAS.items():
        operator = getattr(getattr(torch.ops, NAMESPACE), name)
        counter.register_flop_formula(operator)(formula)


class _RegisterAfterImport(importlib.abc.MetaPathFinder):
    """Finds torch.utils.flop_counter as it would be found without it, and is called once."""

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
            _register(module)

        spec.loader.exec_module = run_and_register  # type: ignore[method-assign]
        return spec
