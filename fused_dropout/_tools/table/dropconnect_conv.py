"""DropConnect's convolutions."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_dropout import functional as f
from fused_dropout import nn
from fused_dropout import reference as r
from fused_dropout._tools.table._row import (
    Arguments,
    Layer,
    Op,
    Operator,
    Shape,
    case,
    normal,
    normals,
    state,
)

_NAME = "dropconnect_conv"
# Of each dimension: kernels of more elements take the tests of second derivatives too long.
_KERNELS = {1: (3,), 2: (3, 3), 3: (3, 1, 1)}
_LAYER = case(in_channels=4, out_channels=6, kernel_size=3, padding=1)
_GROUPS = (*_LAYER, ("groups", 2), ("stride", 2))


def _operands(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    weight = (3, shape[1], *_KERNELS[len(shape) - 2])
    return [normal(shape, draw), normal(weight, draw), normal((3,), draw)]


def _row(dims: int, shapes: tuple[Shape, ...], small: Shape, operators: tuple[str, ...] = ()) -> Op:
    """The last of the shapes has so few positions that results do not depend on threads."""
    name = f"{_NAME}{dims}d"
    inside = (5, 6, 7)[:dims]
    padding = tuple(size // 2 for size in _KERNELS[dims])
    settings = (
        case(p=0.5, padding=padding),
        case(p=0.3, padding=padding, stride=2),
        case(p=0.1, padding="same", dilation=2, mask=2),
        case(p=0.5, padding=2, mask="batch"),
    )
    small_settings = case(p=0.5, padding=padding, stride=2)
    layers = tuple(
        Layer(getattr(nn, f"DropConnectConv{dims}d"), arguments, ((3, 4, *inside),))
        for arguments in (_LAYER, _GROUPS)
    )
    return Op(
        name, getattr(f, name), r.dropconnect_conv, settings, shapes, (small, small_settings),
        _operands, ("input", "weight", "bias"), idle=(case(p=0.0, padding=padding),),
        form_of="" if operators else f"{_NAME}2d", elementwise=False,
        layers=layers, operators=operators,
    )  # fmt: skip


OPS = (
    _row(
        2, ((2, 3, 5, 7), (3, 16, 14, 9), (40, 33, 1, 1)), (2, 1, 2, 2),
        (_NAME, f"{_NAME}_d_input", f"{_NAME}_d_weight"),
    ),
    _row(1, ((3, 4, 50), (40, 33, 1)), (2, 1, 3)),
    _row(3, ((2, 3, 5, 6, 7), (20, 9, 1, 1, 1)), (2, 1, 2, 1, 2)),
)  # fmt: skip

# p, examples_per_mask, scale, stride, padding, dilation
_BY_GROUPS = (0.3, 1, 1.5, [2, 1], [1, 0], [1, 2])
_BY_PATCHES = (0.3, 2, 1.5, [1, 1], [0, 0], [1, 1])


def _tensors() -> list[Tensor]:
    """input, weight of two groups, bias and grad_output."""
    return normals((3, 4, 5, 6), (6, 2, 3, 2), (6,), (3, 6, 3, 4))


def _small_tensors() -> list[Tensor]:
    """The same with one position for each output channel, so that patches are multiplied."""
    return normals((3, 2, 3, 3), (7, 2, 3, 3), (7,), (3, 7, 1, 1))


def _calls() -> list[Arguments]:
    input, weight, bias, _ = _tensors()
    small, of_small, *_ = _small_tensors()
    return [
        (input, weight, bias, state(), *_BY_GROUPS, 2),
        (small, of_small, None, state(), *_BY_PATCHES, 1),
    ]


def _calls_of_d_input() -> list[Arguments]:
    _, weight, _, grad = _tensors()
    _, of_small, _, small_grad = _small_tensors()
    return [
        (grad, weight, state(), *_BY_GROUPS, 2, [5, 6]),
        (small_grad, of_small, state(), *_BY_PATCHES, 1, [3, 3]),
    ]


def _calls_of_d_weight() -> list[Arguments]:
    input, _, _, grad = _tensors()
    small, *_, small_grad = _small_tensors()
    return [
        (grad, input, state(), *_BY_GROUPS, 2, [3, 2]),
        (small_grad, small, state(), *_BY_PATCHES, 1, [3, 3]),
    ]


OPERATORS = (
    Operator(_NAME, _calls, ("input", "weight", "bias")),
    Operator(f"{_NAME}_d_input", _calls_of_d_input, ("grad_output", "weight")),
    Operator(f"{_NAME}_d_weight", _calls_of_d_weight, ("grad_output", "input")),
)
