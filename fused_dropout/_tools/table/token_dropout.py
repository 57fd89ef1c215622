"""Dropout of whole tokens, zeroed or taken out of the sequence."""

from __future__ import annotations

from fused_dropout import functional as f
from fused_dropout import nn
from fused_dropout import reference as r
from fused_dropout._tools.table._row import (
    IDLE,
    RATES,
    WITH_BATCH,
    Layer,
    Op,
    Operator,
    case,
)

_PATCHES = (
    case(prob=0.5),
    case(prob=0.3, num_prefix_tokens=0, ordered=True),
    case(prob=1.0, num_prefix_tokens=2),
)

OPS = (
    Op(
        "token_dropout", f.token_dropout, r.token_dropout, RATES, WITH_BATCH,
        small=((3, 4, 2), case(p=0.5)), inplace=True, idle=IDLE,
        layers=(Layer(nn.TokenDropout, case(p=0.4), ((6, 9, 5),)),),
    ),
    Op(
        "patch_dropout", f.patch_dropout, r.patch_dropout, _PATCHES, WITH_BATCH,
        small=((3, 4, 2), case(prob=0.5)), operand_names=("x",), idle=(case(prob=0.0),),
        elementwise=False, layers=(Layer(nn.PatchDropout, case(prob=0.5), ((6, 9, 5),)),),
    ),
)  # fmt: skip

OPERATORS: tuple[Operator, ...] = ()  # they run dropout's and the noise's
