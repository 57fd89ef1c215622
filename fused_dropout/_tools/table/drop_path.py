"""Dropout of whole samples: stochastic depth, by torchvision's name and by timm's."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from fused_dropout import functional as f
from fused_dropout import nn, reference
from fused_dropout._tools.table._row import RATES, Layer, Op, Operator, Shape, case, normal


def _stochastic_depth(input: Tensor, p: float, mode: str, seed: int) -> Tensor:
    shared = range(1 if mode == "row" else 0, input.dim())
    return reference.dropout(input, p, broadcast_dims=shared, seed=seed)


def _drop_path(x: Tensor, drop_prob: float, seed: int) -> Tensor:
    return _stochastic_depth(x, drop_prob, "row", seed)


def _drop_path_add(x: Tensor, branch: Tensor, drop_prob: float, seed: int) -> Tensor:
    return x + _drop_path(branch, drop_prob, seed)


def _drop_path_skip(x: Tensor, drop_prob: float, seed: int) -> Tensor:
    return _drop_path(-x, drop_prob, seed)


def _two(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    return [normal(shape, draw), normal(shape, draw)]


_MODES = (case(p=0.3, mode="row"), case(p=0.5, mode="batch"), case(p=0.5, mode="row"))
_RATES = tuple(case(drop_prob=dict(rate)["p"]) for rate in RATES)
_IDLE = (case(drop_prob=0.0), case(drop_prob=1.0))
_SMALL = ((6, 2), case(drop_prob=0.5))

OPS = (
    Op(
        "stochastic_depth", f.stochastic_depth, _stochastic_depth, _MODES,
        small=((6, 2), case(p=0.5, mode="row")),
        idle=(case(p=0.0, mode="row"), case(p=1.0, mode="batch")),
        layers=(Layer(nn.StochasticDepth, case(p=0.4, mode="row"), ((16, 5),)),),
    ),
    Op(
        "drop_path", partial(f.drop_path, training=True), _drop_path, _RATES,
        small=_SMALL, operand_names=("x",), idle=_IDLE,
        layers=(Layer(nn.DropPath, case(drop_prob=0.4), ((16, 5),)),),
    ),
    Op(
        "drop_path_add", partial(f.drop_path_add, training=True), _drop_path_add, _RATES,
        small=_SMALL, operands=_two, operand_names=("x", "branch"), idle=_IDLE,
        layers=(Layer(nn.DropPathAdd, case(drop_prob=0.4), ((16, 5), (16, 5))),),
    ),
    Op(  # around a module that rounds nothing
        "drop_path_skip", partial(f.drop_path_skip, module=torch.neg, training=True),
        _drop_path_skip, _RATES, small=_SMALL, operand_names=("x",), idle=_IDLE, runs_module=True,
    ),
)  # fmt: skip

OPERATORS: tuple[Operator, ...] = ()  # they run dropout's
