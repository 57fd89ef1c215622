"""DropBlock, with blocks of each channel's own and with the same for all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fused_dropout import functional
from fused_dropout._core.drop_block_gamma import paper_gamma
from fused_dropout._tools.bench.op import (
    BenchOp,
    Layer,
    LayerAt,
    Shape,
    Typical,
    in_powers,
    installed,
)

SHAPE, BLOCK, P = (32, 64, 56, 56), 7, 0.1
OWN_FORM, SHARED_FORM = "torchvision's form", "timm's form"
_MAX_POOL: dict[int, Callable[..., Any]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def block_of(x: Tensor, block: int = BLOCK) -> int:
    """The block's side; on maps that have no room for it, a single element."""
    return block if min(x.shape[2:]) >= block else 1


def gamma(x: Tensor, p: float, block: int) -> float:
    """The rate of seeds, as in the paper."""
    return paper_gamma(p, x.shape[2:], (block,) * (x.dim() - 2))


def form_of_torchvision(x: Tensor, p: float, block: int) -> Tensor:
    """A mask for each channel by max pooling, as torchvision writes it; 1 to 3 dimensions."""
    dimensions = x.dim() - 2
    places = [side - block + 1 for side in x.shape[2:]]
    dropped = x.new_empty(*x.shape[:2], *places).bernoulli_(gamma(x, p, block))
    padded = F.pad(dropped, [block // 2] * (2 * dimensions))
    kept = 1 - _MAX_POOL[dimensions](padded, block, 1, block // 2)
    return x * kept * (kept.numel() / (kept.sum() + 1e-6))


def form_of_timm(x: Tensor, p: float, block: int) -> Tensor:
    """One mask for all channels of a sample, as timm writes it."""
    with torch.no_grad():
        dropped = x.new_empty(len(x), 1, *x.shape[2:]).bernoulli_(gamma(x, p, block))
        kept = 1 - F.max_pool2d(dropped, block, 1, block // 2)
        kept.mul_(kept.numel() / (kept.sum() + 1e-7))
    return x * kept


def fused(dimensions: int, share_channels: bool = False) -> LayerAt:
    function = getattr(functional, f"drop_block{dimensions}d")

    def layer(x: Tensor, *, p: float) -> Tensor:
        output: Tensor = function(x, p, block_of(x), share_channels=share_channels)
        return output

    return lambda p: partial(layer, p=p)


def written_out(form: Callable[[Tensor, float, int], Tensor]) -> LayerAt:
    """A peer's form with blocks as ours."""
    return lambda p: lambda x: form(x, p, block_of(x))


def peers_own(package: str, module: str, function: str) -> LayerAt:
    """A peer's own code, where it is installed."""

    def layer_at(p: float) -> Layer:
        layer = installed(package, module, function)
        return lambda x: layer(x, p, block_of(x))

    return layer_at


def _sized(dimensions: int) -> Callable[[int], Shape]:
    return lambda elements: in_powers(elements, *[1] * (2 + dimensions))


TORCHVISION = peers_own("torchvision", "torchvision.ops", "drop_block2d")
TORCHVISION_3D = peers_own("torchvision", "torchvision.ops", "drop_block3d")
TIMM = peers_own("timm", "timm.layers", "drop_block_2d")
_MAPS = (
    Typical(SHAPE), Typical(SHAPE, "channels_last"), Typical((32, 512, 14, 14)),
    Typical((32, 1024, 7, 7)),
)  # fmt: skip

OWN = BenchOp(
    "drop_block2d", fused(2),
    {OWN_FORM: written_out(form_of_torchvision), "torchvision": TORCHVISION},
    SHAPE, _sized(2), _MAPS, P,
)  # fmt: skip
SHARED = BenchOp(
    "drop_block2d_shared", fused(2, share_channels=True),
    {SHARED_FORM: written_out(form_of_timm), "timm": TIMM},
    SHAPE, _sized(2), _MAPS, P,
)  # fmt: skip
OPS = (
    BenchOp(
        "drop_block1d", fused(1), {OWN_FORM: written_out(form_of_torchvision)},
        (32, 128, 1024), _sized(1), (Typical((32, 128, 1024)), Typical((32, 80, 3000))), P,
    ),
    OWN,
    SHARED,
    BenchOp(
        "drop_block3d", fused(3),
        {OWN_FORM: written_out(form_of_torchvision), "torchvision": TORCHVISION_3D},
        (4, 64, 16, 28, 28), _sized(3),
        (Typical((4, 64, 16, 28, 28)), Typical((4, 64, 16, 28, 28), "channels_last_3d")), P,
    ),
)  # fmt: skip
