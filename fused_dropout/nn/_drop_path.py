"""Stochastic depth layers, with the parameters of torchvision's and timm's."""

from __future__ import annotations

import torch
import torch.fx
from torch import Tensor

from fused_dropout._core import checks
from fused_dropout.functional._drop_path import (
    MODES,
    Mode,
    drop_path,
    drop_path_add,
    stochastic_depth,
)
from fused_dropout.nn._package_name import ShowsPackage

# torch.fx traces the calls below as single nodes, as it does torchvision's.
torch.fx.wrap("stochastic_depth")
torch.fx.wrap("drop_path")
torch.fx.wrap("drop_path_add")


class StochasticDepth(ShowsPackage, torch.nn.Module):
    """Zeroes samples in training; :class:`torchvision.ops.StochasticDepth` on the package's masks.

    Source: Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016.
    See :func:`fused_dropout.functional.stochastic_depth`.

    Args:
        p: drop probability in [0, 1].
        mode: ``"row"`` (each sample by itself) or ``"batch"`` (all or none).

    Shape:
        input ``[N, ...]``, output the same.

    Raises:
        ValueError, TypeError: p or mode out of range or of the wrong type.
    """

    drops_in_training = True  # for fused_dropout.mc_dropout

    def __init__(self, p: float, mode: Mode) -> None:
        super().__init__()
        self.p = checks.check_probability(p)
        checks.check_choice(mode, "mode", MODES)
        self.mode = mode

    def forward(self, input: Tensor) -> Tensor:
        return stochastic_depth(input, self.p, self.mode, self.training)

    def __repr__(self) -> str:
        return f"{self._get_name()}(p={self.p}, mode={self.mode})"


class DropPath(ShowsPackage, torch.nn.Module):
    """Zeroes samples in training; timm's layer of this name on the package's masks.

    Source: Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016.
    See :func:`fused_dropout.functional.drop_path`.

    Args:
        drop_prob: drop probability in [0, 1].
        scale_by_keep: divide what is kept by the keep rate.

    Shape:
        input ``[N, ...]``, output the same.

    Raises:
        ValueError, TypeError: an argument out of range or of the wrong type.
    """

    drops_in_training = True  # for fused_dropout.mc_dropout

    def __init__(self, drop_prob: float = 0.0, scale_by_keep: bool = True) -> None:
        super().__init__()
        self.drop_prob = checks.check_probability(drop_prob, "drop_prob")
        self.scale_by_keep = checks.check_bool(scale_by_keep, "scale_by_keep")

    def forward(self, x: Tensor) -> Tensor:
        return drop_path(x, self.drop_prob, self.training, self.scale_by_keep)

    def extra_repr(self) -> str:
        return f"drop_prob={round(self.drop_prob, 3):0.3f}"


class DropPathAdd(DropPath):
    """The sum at a residual block's end: called with ``(x, branch)``, ``x + drop_path(branch)``.

    One pass where :class:`DropPath` and ``+`` take two. Parameters as :class:`DropPath`'s; see
    :func:`fused_dropout.functional.drop_path_add`.

    Shape:
        x and branch ``[N, ...]``, output the same.
    """

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:  # type: ignore[override]
        return drop_path_add(x, branch, self.drop_prob, self.training, self.scale_by_keep)
