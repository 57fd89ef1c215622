"""DropConnect."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_dropout import functional, nn, reference
from fused_dropout._core import extension
from fused_dropout._tools.table._row import (
    IDLE,
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

_NAME = "dropconnect_linear"
_STORAGES = tuple(
    case(p=0.3, mask=mask, mask_storage=storage)
    for mask in ("row", "example", "batch", 3)
    for storage in ("regenerate", "packed")
)
_LAYER = case(in_features=9, out_features=5)


def _reference(*operands: Any, mask_storage: str, **keywords: Any) -> Tensor:
    """The reference has no packed masks: how a mask is stored changes no result."""
    del mask_storage
    return reference.dropconnect_linear(*operands, **keywords)


def _input_weight_bias(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    return [normal(shape, draw), normal((5, shape[-1]), draw), normal((5,), draw)]


OPS = (
    Op(
        _NAME, functional.dropconnect_linear, _reference, _STORAGES, ((3, 2, 33), (5, 129)),
        small=((3, 4), case(p=0.5, mask_storage="regenerate")), operands=_input_weight_bias,
        operand_names=("input", "weight", "bias"), idle=IDLE[:1], elementwise=False,
        layers=(Layer(nn.DropConnectLinear, _LAYER, ((6, 9),)),),
        operators=(
            _NAME, f"{_NAME}_with_bits", "dropconnect_mask_bits",
            *(f"{_NAME}_{name}" for name in ("d_input", "d_weight", "d_both", "d_bias")),
        ),
    ),
)  # fmt: skip

_SETTINGS = (0.3, 2, 1.5)  # p, rows_per_mask, scale


def _matrices() -> list[Tensor]:
    """input, weight, bias and grad_output; the columns fill one group of mask bits and a part."""
    return normals((6, 140), (9, 140), (9,), (6, 9))


def _bits() -> Tensor:
    """The masks of `_matrices`."""
    draw = extension.operators().dropconnect_mask_bits
    bits: Tensor = draw(_matrices()[1], state(), 3, _SETTINGS[0])
    return bits


def _calls() -> list[Arguments]:
    input, weight, bias, _ = _matrices()
    return [
        (input, weight, bias, state(), None, *_SETTINGS),
        (input, weight, None, state(), _bits(), *_SETTINGS),
    ]


def _calls_with_bits() -> list[Arguments]:
    input, weight, bias, _ = _matrices()
    return [(input, weight, bias, state(), *_SETTINGS)]


def _calls_of_d_input() -> list[Arguments]:
    _, weight, _, grad = _matrices()
    return [(grad, weight, state(), _bits(), *_SETTINGS)]


def _calls_of_d_weight() -> list[Arguments]:
    input, _, _, grad = _matrices()
    return [(grad, input, state(), None, *_SETTINGS)]


def _calls_of_d_both() -> list[Arguments]:
    input, weight, _, grad = _matrices()
    return [(grad, input, weight, state(), None, *_SETTINGS)]


def _calls_of_d_bias() -> list[Arguments]:
    return [(_matrices()[3], state(), *_SETTINGS)]


def _calls_of_mask_bits() -> list[Arguments]:
    return [(_matrices()[1], state(), 3, 0.3)]


OPERATORS = (
    Operator(_NAME, _calls, ("input", "weight", "bias")),
    Operator(f"{_NAME}_with_bits", _calls_with_bits, ("input", "weight", "bias")),
    Operator(f"{_NAME}_d_input", _calls_of_d_input, ("grad_output", "weight")),
    Operator(f"{_NAME}_d_weight", _calls_of_d_weight, ("grad_output", "input")),
    Operator(f"{_NAME}_d_both", _calls_of_d_both, ("grad_output", "input", "weight")),
    Operator(f"{_NAME}_d_bias", _calls_of_d_bias, ("grad_output",)),
    Operator("dropconnect_mask_bits", _calls_of_mask_bits),
)
