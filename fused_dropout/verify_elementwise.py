"""Checks of the ops that act element by element: values, gradients, strides.

The truth is the reference in float64 on the same, already rounded, operands. Our largest error may
be twice that of the reference run in the dtype under test, plus a few units in the last place of
the largest value.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from fused_dropout import functional, reference
from fused_dropout.verify import Check, Outcome, Settings, Target
from fused_dropout.verify_errors import error_bound, error_ratio

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_FLOOR_ULPS = 4
# Where no wider dtype holds the truth, it is as far off as what is judged.
_FLOOR_ULPS_FLOAT64 = 64
_PS = (0.5, 0.1, 0.3)
_ACTIVATIONS = ("none", "relu", "gelu", "gelu_tanh", "silu")

Function = Callable[..., Tensor]  # operands, settings and seed= in; one tensor out
Case = tuple[tuple[str, Any], ...]  # keyword arguments
Shape = tuple[int, ...]
SHAPES: tuple[Shape, ...] = ((1,), (129,), (3, 5, 31), (2, 7, 9, 11), (4, 40_000))
MAPS: tuple[Shape, ...] = ((1, 1, 1, 1), (2, 3, 5, 7), (3, 16, 14, 9))


@dataclass(frozen=True)
class Op:
    """A function, its reference, and what to call both with.

    `operands` draws the operands for a shape; all of them get gradients.
    """

    name: str
    fused: Function
    written_out: Function
    settings: tuple[Case, ...]
    shapes: tuple[Shape, ...] = SHAPES
    operands: Callable[[Shape, torch.Generator], list[Tensor]] = lambda shape, draw: [
        normal(shape, draw)
    ]


def normal(shape: Shape, draw: torch.Generator) -> Tensor:
    """Standard normals in float64."""
    return torch.randn(shape, generator=draw, dtype=torch.float64)


def case(**keywords: Any) -> Case:
    """Keyword arguments that can be a key."""
    return tuple(keywords.items())


@cache
def ops() -> tuple[Op, ...]:
    """Everything that is checked here."""
    f, r = functional, reference
    rates = tuple(case(p=p) for p in _PS)
    with_batch = tuple(shape for shape in SHAPES if len(shape) > 1)
    return (
        Op("dropout", f.dropout, r.dropout, rates),
        Op("dropout, shared", f.dropout, r.dropout, _shared_settings(), (*MAPS, (3, 5, 8, 40))),
        Op("dropout1d", f.dropout1d, r.dropout1d, rates, ((5, 7), (3, 5, 31))),
        Op("dropout2d", f.dropout2d, r.dropout2d, rates, MAPS),
        Op("dropout3d", f.dropout3d, r.dropout3d, rates, ((2, 5, 3, 4, 5), (5, 3, 4, 5))),
        Op("alpha_dropout", _training(f.alpha_dropout), r.alpha_dropout, rates),
        Op(
            "feature_alpha_dropout", _training(f.feature_alpha_dropout), r.feature_alpha_dropout,
            rates, with_batch,
        ),
        Op("locked_dropout", f.locked_dropout, r.locked_dropout, rates, with_batch),
        Op("drop_path", _drop_path, _drop_path_written_out, rates),
        Op("drop_path_add", _drop_path_add, _drop_path_add_written_out, rates, operands=_two),
        Op("gaussian_dropout", f.gaussian_dropout, r.gaussian_dropout, rates),
        Op(
            "gaussian_noise", f.gaussian_noise, r.gaussian_noise, (case(),),
            operands=_mean_variance,
        ),
        Op(
            "concrete_dropout", f.concrete_dropout, r.concrete_dropout,
            (case(temperature=0.1), case(temperature=0.7)), operands=_with_logit,
        ),
        Op(
            "bias_act_dropout_add", f.bias_act_dropout_add, r.bias_act_dropout_add,
            tuple(case(activation=name, p=0.1) for name in _ACTIVATIONS), with_batch,
            operands=_with_bias,
        ),
        Op("drop_block2d", f.drop_block2d, r.drop_block, _block_settings(), MAPS),
        Op("drop_block1d", f.drop_block1d, r.drop_block, _block_settings(), ((3, 4, 50),)),
        Op("drop_block3d", f.drop_block3d, r.drop_block, _block_settings(), ((2, 3, 5, 6, 7),)),
    )  # fmt: skip


def elementwise_checks(settings: Settings) -> Iterator[Check]:
    """Two checks for each op and implementation."""
    for op, target in itertools.product(ops(), settings.targets):
        for what, check in (
            ("output, gradients", _errors),
            ("strided = contiguous", _strides_agree),
        ):
            run = partial(check, op, target, settings)
            yield Check(op.name, what, target.name, "all", run)


def _errors(op: Op, target: Target, settings: Settings) -> Outcome:
    outcome = Outcome()
    for dtype, (shape, keywords) in itertools.product(_DTYPES, _cases(op, settings)):
        floor_ulps = _FLOOR_ULPS_FLOAT64 if dtype == torch.float64 else _FLOOR_ULPS
        truth, own = _expected(op, shape, settings.seed, dtype, keywords)
        operands = [
            operand.to(target.device, dtype) for operand in _operands(op, shape, settings.seed)
        ]
        with target.active():
            ours = _results(op.fused, operands, settings.seed, keywords)
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
    truth = _results(op.written_out, wide, seed, keywords)
    return truth, _results(op.written_out, operands, seed, keywords)


def _strides_agree(op: Op, target: Target, settings: Settings) -> Outcome:
    outcome = Outcome()
    for dtype, (shape, keywords) in itertools.product(_DTYPES, _cases(op, settings)):
        operands = [
            operand.to(target.device, dtype) for operand in _operands(op, shape, settings.seed)
        ]
        with target.active():
            dense = _output(op, operands, settings.seed, keywords)
            reverse = _output(op, list(map(_reversed, operands)), settings.seed, keywords)
        outcome.add_exact(torch.equal(dense, reverse), f"{dtype}, {shape}, {dict(keywords)}")
    return outcome


def _output(op: Op, operands: list[Tensor], seed: int, keywords: Case) -> Tensor:
    return op.fused(*operands, seed=seed, **dict(keywords))


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


# ---- what the ops are called with ----------------------------------------------------------------


def _training(function: Function) -> Function:
    """torch's alpha dropouts take training=False for granted."""
    return partial(function, training=True)


def _shared_settings() -> tuple[Case, ...]:
    return tuple(case(p=0.3, broadcast_dims=dims) for dims in ((0,), (1,), (0, 2), (1, 2, 3)))


def _block_settings() -> tuple[Case, ...]:
    return (
        case(p=0.1, block_size=3),
        case(p=0.2, block_size=2, normalize="sample"),
        case(p=0.1, block_size=3, gamma="exact", share_channels=True),
    )


def _drop_path(x: Tensor, p: float, seed: int) -> Tensor:
    return functional.drop_path(x, p, True, seed=seed)


def _drop_path_written_out(x: Tensor, p: float, seed: int) -> Tensor:
    return reference.dropout(x, p, broadcast_dims=tuple(range(1, x.dim())), seed=seed)


def _drop_path_add(x: Tensor, branch: Tensor, p: float, seed: int) -> Tensor:
    return functional.drop_path_add(x, branch, p, True, seed=seed)


def _drop_path_add_written_out(x: Tensor, branch: Tensor, p: float, seed: int) -> Tensor:
    return x + _drop_path_written_out(branch, p, seed)


def _two(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    return [normal(shape, draw), normal(shape, draw)]


def _mean_variance(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    return [normal(shape, draw), 0.1 + normal(shape, draw).square()]


def _with_logit(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    return [normal(shape, draw), torch.tensor(-1.0, dtype=torch.float64)]


def _with_bias(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    return [normal(shape, draw), normal(shape[-1:], draw), normal(shape, draw)]
