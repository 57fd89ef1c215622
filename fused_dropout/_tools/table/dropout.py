"""Dropout of elements and channels, and alpha dropout."""

from __future__ import annotations

from functools import partial
from typing import Any

from fused_dropout import functional as f
from fused_dropout import nn
from fused_dropout import reference as r
from fused_dropout._tools.table._row import (
    IDLE,
    MAPS,
    RATES,
    WITH_BATCH,
    Arguments,
    Layer,
    Op,
    Operator,
    case,
    normals,
    state,
)

_COMMON: dict[str, Any] = {"inplace": True, "idle": IDLE}
_SHARED = tuple(case(p=0.3, broadcast_dims=dims) for dims in ((0,), (1,), (0, 2), (1, 2, 3)))

OPS = (
    Op(
        "dropout", f.dropout, r.dropout, RATES, **_COMMON,
        layers=(Layer(nn.Dropout, case(p=0.4), ((6, 40),)),),
        operators=("dropout", "dropout_"),
    ),
    Op(
        "dropout, shared", f.dropout, r.dropout, _SHARED, (*MAPS, (3, 5, 8, 40)),
        small=((3, 4, 2), case(p=0.5, broadcast_dims=(1,))), inplace=True,
    ),
    Op(
        "dropout1d", f.dropout1d, r.dropout1d, RATES, ((5, 7), (3, 5, 31)),
        small=((3, 4, 2), case(p=0.5)), **_COMMON, form_of="dropout2d",
        layers=(Layer(nn.Dropout1d, case(p=0.4), ((6, 9, 5),)),),
    ),
    Op(
        "dropout2d", f.dropout2d, r.dropout2d, RATES, MAPS,
        small=((3, 4, 2, 1), case(p=0.5)), **_COMMON,
        layers=(Layer(nn.Dropout2d, case(p=0.4), ((6, 9, 5, 2),)),),
    ),
    Op(
        "dropout3d", f.dropout3d, r.dropout3d, RATES, ((2, 5, 3, 4, 5), (5, 3, 4, 5)),
        small=((3, 4, 1, 2, 1), case(p=0.5)), **_COMMON, form_of="dropout2d",
        layers=(Layer(nn.Dropout3d, case(p=0.4), ((6, 9, 1, 2, 3),)),),
    ),
    # torch's alpha dropouts take training=False for granted.
    Op(
        "alpha_dropout", partial(f.alpha_dropout, training=True), r.alpha_dropout,
        (*RATES, case(p=0.3, broadcast_dims=(0,))),
        **_COMMON, layers=(Layer(nn.AlphaDropout, case(p=0.4), ((6, 40),)),),
    ),
    Op(
        "feature_alpha_dropout", partial(f.feature_alpha_dropout, training=True),
        r.feature_alpha_dropout, RATES, WITH_BATCH, small=((3, 4, 2), case(p=0.5)), **_COMMON,
        layers=(Layer(nn.FeatureAlphaDropout, case(p=0.4), ((6, 9, 5),)),),
    ),
    Op(
        "locked_dropout", f.locked_dropout, r.locked_dropout, RATES, WITH_BATCH,
        small=((2, 3, 4), case(p=0.5)), **_COMMON,
        layers=(Layer(nn.LockedDropout, case(p=0.4), ((5, 6, 9),)),),
    ),
)  # fmt: skip


def _calls() -> list[Arguments]:
    input, residual, transposed = normals((6, 14), (6, 14), (14, 6))
    return [
        (input, None, state(), 0.3, 1.5, [1], 0.25, -1.0),
        (transposed.t(), residual, state(), 0.3, 1.5, [], 0.25, -1.0),
    ]


OPERATORS = (
    Operator("dropout", _calls, ("input", "residual")),
    Operator("dropout_", _calls, ("input", "residual")),
)
