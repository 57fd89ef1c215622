"""Weights under the masks of DropConnect."""

from __future__ import annotations

from fused_dropout import functional, reference
from fused_dropout._core import extension
from fused_dropout._tools.table._row import (
    IDLE,
    RATES,
    Arguments,
    Op,
    Operator,
    case,
    normals,
    state,
)

_NAME = "mask_weight"

OPS = (
    Op(
        _NAME, functional.mask_weight, reference.mask_weight,
        (*RATES, *(case(p=p, masks=masks) for p in (0.5, 0.3) for masks in (1, 5))),
        small=((3, 4), case(p=0.5, masks=2)), operand_names=("weight",), idle=IDLE,
        operators=(_NAME, f"{_NAME}_sum"),
    ),
)  # fmt: skip

_SETTINGS = (0.3, 3, 1.5)  # p, masks, scale


def _calls() -> list[Arguments]:
    weight, transposed = normals((9, 140), (140, 9))
    bits = extension.operators().dropconnect_mask_bits(weight, state(), 3, 0.3)
    return [(weight, state(), None, *_SETTINGS), (transposed.t(), state(), bits, *_SETTINGS)]


def _calls_of_sum() -> list[Arguments]:
    stack, transposed = normals((3, 9, 140), (140, 9, 3))
    bits = extension.operators().dropconnect_mask_bits(stack[0], state(), 3, 0.3)
    return [
        (stack, state(), bits, *_SETTINGS),
        (transposed.permute(2, 1, 0), state(), None, *_SETTINGS),
    ]


OPERATORS = (
    Operator(_NAME, _calls, ("weight",)),
    Operator(f"{_NAME}_sum", _calls_of_sum, ("stack",)),
)
