"""Masks and noise drawn by themselves."""

from __future__ import annotations

import torch
from torch import Tensor

import fused_dropout
from fused_dropout import reference
from fused_dropout._tools.table._row import Case, Function, Op, Operator, Shape, case, state


def _packed_mask(shape: Shape, p: float, seed: int) -> Tensor:
    bits = reference.mask(shape, p, seed=seed).to(torch.int64)
    words = torch.nn.functional.pad(bits, (0, -shape[-1] % 32)).unflatten(-1, (-1, 32))
    return (words << torch.arange(32)).sum(-1).to(torch.uint32)


def _row(name: str, function: Function, written_out: Function, settings: Case) -> Op:
    return Op(
        name, function, written_out, (settings,), ((),), ((), settings),
        operands=lambda shape, draw: [], operand_names=(), operators=(name,),
    )  # fmt: skip


_MASK, _NOISE = case(shape=(3, 140), p=0.3), case(size=(3, 50))

OPS = (
    _row("mask", fused_dropout.mask, reference.mask, _MASK),
    _row("packed_mask", fused_dropout.packed_mask, _packed_mask, _MASK),
    _row("uniform_noise", fused_dropout.uniform_noise, reference.uniform_noise, _NOISE),
    _row("normal_noise", fused_dropout.normal_noise, reference.normal_noise, _NOISE),
)

OPERATORS = (
    Operator("mask", lambda: [(state(), 3, 140, 0.3, 0, 16)]),
    Operator("packed_mask", lambda: [(state(), 3, 140, 0.3, 0, 16)]),
    Operator("uniform_noise", lambda: [(state(), [3, 50], torch.float32)]),
    Operator("normal_noise", lambda: [(state(), [], torch.float64)]),
)
