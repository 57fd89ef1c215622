"""DropBlock in one, two and three dimensions."""

from __future__ import annotations

from typing import Any

from fused_dropout import functional as f
from fused_dropout import nn
from fused_dropout import reference as r
from fused_dropout._core import extension
from fused_dropout._tools.table._row import (
    MAPS,
    Arguments,
    Layer,
    Op,
    Operator,
    case,
    normals,
    state,
)

_SETTINGS = (
    case(p=0.1, block_size=3),
    case(p=0.2, block_size=2, normalize="sample"),
    case(p=0.1, block_size=3, gamma="exact", share_channels=True),
)
_SMALL = case(p=0.3, block_size=2)
_LAYER = case(p=0.2, block_size=2)
_COMMON: dict[str, Any] = {"inplace": True, "idle": (case(p=0.0, block_size=2),)}

OPS = (
    Op(
        "drop_block2d", f.drop_block2d, r.drop_block, _SETTINGS, MAPS,
        small=((2, 2, 2, 3), _SMALL), **_COMMON,
        layers=(Layer(nn.DropBlock2d, _LAYER, ((3, 4, 5, 6),)),),
        operators=("drop_block_mask", "drop_block", "drop_block_"),
    ),
    Op(
        "drop_block1d", f.drop_block1d, r.drop_block, _SETTINGS, ((3, 4, 50),),
        small=((2, 2, 6), _SMALL), **_COMMON, form_of="drop_block2d",
        layers=(Layer(nn.DropBlock1d, _LAYER, ((3, 4, 20),)),),
    ),
    Op(
        "drop_block3d", f.drop_block3d, r.drop_block, _SETTINGS, ((2, 3, 5, 6, 7),),
        small=((2, 2, 2, 2, 2), _SMALL), **_COMMON, form_of="drop_block2d",
        layers=(Layer(nn.DropBlock3d, _LAYER, ((3, 4, 5, 3, 4),)),),
    ),
)  # fmt: skip

_BLOCKS = ([3, 2], 0.1, False, 2, 1e-6)  # block, gamma, share_channels, scales, eps


def _calls_of_mask() -> list[Arguments]:
    (maps,) = normals((2, 3, 9, 8))
    return [(maps, state(), *_BLOCKS), (maps, state(), [3, 2], 0.1, True, 0, 1e-6)]


def _calls() -> list[Arguments]:
    (maps,) = normals((2, 3, 9, 8))
    bits, scale = extension.operators().drop_block_mask(maps, state(), *_BLOCKS)
    return [(maps, bits, scale, False), (maps.mT.contiguous().mT, bits, scale, False)]


OPERATORS = (
    Operator("drop_block_mask", _calls_of_mask),
    Operator("drop_block", _calls, ("input",)),
    Operator("drop_block_", _calls, ("input",)),
)
