"""Checks of every row of the table of ops that has operands: values, gradients, strides.

`dropconnect_linear` has a file of its own. The truth is the reference in float64 on the same,
already rounded, operands. Our largest error may be twice that of the reference run in the dtype
under test, plus a few units in the last place of the largest value.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache, partial

import torch
from torch import Tensor

from fused_dropout._tools import table
from fused_dropout._tools.table import DTYPES, Case, Function, Op, Shape
from fused_dropout._tools.verify.checks import Check, Outcome, Settings, Target
from fused_dropout._tools.verify.errors import error_bound, error_ratio

# Torch's own product may add in another order where operands have other strides.
_WITHOUT_STRIDES = {"dropout_matmul"}
_FLOOR_ULPS = 4
# Where no wider dtype holds the truth, it is as far off as what is judged.
_FLOOR_ULPS_FLOAT64 = 64


def ops() -> tuple[Op, ...]:
    """Everything that is checked here."""
    return tuple(op for op in table.ops() if op.operand_names and op.name != "dropconnect_linear")


def table_checks(settings: Settings) -> Iterator[Check]:
    """Two checks for each op and implementation."""
    for op, target in itertools.product(ops(), settings.targets):
        for what, check in (
            ("output, gradients", _errors),
            ("strided = contiguous", _strides_agree),
        ):
            if check is _strides_agree and op.name in _WITHOUT_STRIDES:
                continue
            run = partial(check, op, target, settings)
            yield Check(op.name, what, target.name, "all", run)


def _errors(op: Op, target: Target, settings: Settings) -> Outcome:
    outcome = Outcome()
    for dtype, (shape, keywords) in itertools.product(DTYPES, _cases(op, settings)):
        floor_ulps = _FLOOR_ULPS_FLOAT64 if dtype == torch.float64 else _FLOOR_ULPS
        truth, own = _expected(op, shape, settings.seed, dtype, keywords)
        operands = [
            operand.to(target.device, dtype) for operand in _operands(op, shape, settings.seed)
        ]
        with target.active():
            ours = _results(op.function, operands, settings.seed, keywords)
        for ours_one, truth_one, own_one in zip(ours, truth, own, strict=True):
            bound = error_bound([own_one], truth_one, floor_ulps)
            ratio = error_ratio(ours_one, truth_one, bound, dtype)
            outcome.add(ratio, f"{dtype}, {shape}, {dict(keywords)}")
    return outcome


@cache
def _expected(
    op: Op, shape: Shape, seed: int, dtype: torch.dtype, keywords: Case
) -> tuple[list[Tensor], list[Tensor]]:
    """Results of the reference in float64 and in `dtype`."""
    operands = [operand.to(dtype) for operand in _operands(op, shape, seed)]
    wide = [operand.double() for operand in operands]
    truth = _results(op.reference, wide, seed, keywords)
    return truth, _results(op.reference, operands, seed, keywords)


def _strides_agree(op: Op, target: Target, settings: Settings) -> Outcome:
    outcome = Outcome()
    for dtype, (shape, keywords) in itertools.product(DTYPES, _cases(op, settings)):
        operands = [
            operand.to(target.device, dtype) for operand in _operands(op, shape, settings.seed)
        ]
        with target.active():
            dense = _output(op, operands, settings.seed, keywords)
            reverse = _output(op, list(map(_reversed, operands)), settings.seed, keywords)
        outcome.add_exact(torch.equal(dense, reverse), f"{dtype}, {shape}, {dict(keywords)}")
    return outcome


def _output(op: Op, operands: list[Tensor], seed: int, keywords: Case) -> Tensor:
    return op.function(*operands, seed=seed, **dict(keywords))


def _cases(op: Op, settings: Settings) -> list[tuple[Shape, Case]]:
    """All shapes and settings, or in a quick run as few as show each of them once."""
    if not settings.quick:
        return list(itertools.product(op.shapes, op.settings))
    count = max(len(op.shapes), len(op.settings))
    shapes, cases = itertools.cycle(op.shapes), itertools.cycle(op.settings)
    return list(itertools.islice(zip(shapes, cases, strict=False), count))


def _operands(op: Op, shape: Shape, seed: int) -> list[Tensor]:
    return op.operands(shape, torch.Generator().manual_seed(seed))


def _results(function: Function, operands: list[Tensor], seed: int, keywords: Case) -> list[Tensor]:
    """The output and the gradients of its product with fixed numbers, on the CPU."""
    leaves = [operand.detach().requires_grad_() for operand in operands]
    output = function(*leaves, seed=seed, **dict(keywords))
    draw = torch.Generator().manual_seed(1)
    direction = torch.randn(output.shape, generator=draw, dtype=torch.float64)
    gradients = torch.autograd.grad(output, leaves, direction.to(output.device, output.dtype))
    return [result.detach().cpu() for result in (output, *gradients)]


def _reversed(tensor: Tensor) -> Tensor:
    """The same values with the dimensions laid out in reverse."""
    order = tuple(reversed(range(tensor.dim())))
    return tensor.permute(order).contiguous().permute(order)
