"""Stochastic depth layers, with the parameters of torchvision's and timm's."""

from __future__ import annotations

from collections.abc import Callable

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
from fused_dropout.functional._drop_path_skip import drop_path_skip
from fused_dropout.nn._package_name import ShowsPackage

# torch.fx traces the calls below as single nodes, as it does torchvision's.
torch.fx.wrap("stochastic_depth")
torch.fx.wrap("drop_path")
torch.fx.wrap("drop_path_add")


class StochasticDepth(ShowsPackage, torch.nn.Module):
    """Zeroes whole samples in training; replaces ``torchvision.ops.StochasticDepth``.

    Samples are dropped with probability ``p``, and the others are divided by the keep rate; in
    evaluation the input is returned as it is. The layer calls
    :func:`fused_dropout.functional.stochastic_depth`.

    Source: Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016.

    Args:
        p: drop probability in [0, 1].
        mode: ``"row"``: each sample is dropped by itself; ``"batch"``: all samples are, or none.

    Shape:
        input: ``[N, ...]``; output: the same.

    Raises:
        ValueError: p or mode out of range.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that :func:`fused_dropout.functional.stochastic_depth`
            refuses.
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
    """Zeroes whole samples in training; replaces timm's layer of this name.

    Samples are dropped with probability ``drop_prob``; in evaluation the input is returned as it
    is. The layer calls :func:`fused_dropout.functional.drop_path`.

    Source: Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016.

    Args:
        drop_prob: drop probability in [0, 1].
        scale_by_keep: divide what is kept by the keep rate.

    Shape:
        x: ``[N, ...]``; output: the same.

    Raises:
        ValueError: drop_prob out of range.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that :func:`fused_dropout.functional.drop_path` refuses.
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
    """``x + drop_path(branch)`` in one pass: the sum at the end of a residual block.

    It is called with ``(x, branch)``, and takes one pass over memory where :class:`DropPath` and
    ``+`` take two. In training whole samples of the branch are dropped with probability
    ``drop_prob``; in evaluation the result is ``x + branch``. The layer calls
    :func:`fused_dropout.functional.drop_path_add`.

    Source: Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016.

    Args:
        drop_prob: drop probability in [0, 1].
        scale_by_keep: divide what is kept by the keep rate.

    Shape:
        x and branch: ``[N, ...]``, the same; output: the same.

    Raises:
        ValueError: drop_prob out of range.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that :func:`fused_dropout.functional.drop_path_add`
            refuses.

    Example:
        >>> from fused_dropout import nn
        >>> add = nn.DropPathAdd(0.1)
        >>> x, block = torch.ones(4, 8), torch.nn.Linear(8, 8)
        >>> add(x, block(x)).shape
        torch.Size([4, 8])
    """

    def forward(self, x: Tensor, branch: Tensor) -> Tensor:  # type: ignore[override]
        return drop_path_add(x, branch, self.drop_prob, self.training, self.scale_by_keep)


class DropPathSkip(DropPath):
    """Stochastic depth that does not compute the branch of dropped samples.

    It is called with the branch, and takes the place of a :class:`DropPath` behind it:
    ``x + self.drop_path(self.attn(self.norm(x)))`` becomes
    ``self.drop_path(x, lambda x: self.attn(self.norm(x)), residual=x)``. The branch's parameters
    stay where they are, and so do their names in checkpoints. In evaluation the result is
    ``module(x)``, plus ``residual``. The layer calls
    :func:`fused_dropout.functional.drop_path_skip`.

    Source: Huang et al., "Deep Networks with Stochastic Depth", ECCV 2016.

    Args:
        drop_prob: drop probability in [0, 1].
        scale_by_keep: divide what is kept by the keep rate.

    Shape:
        x: ``[N, ...]``, or a tuple of such tensors and None, the arguments of ``module``; output:
        that of ``module``, a row for each sample; residual: the same.

    Raises:
        ValueError: drop_prob out of range.
        TypeError: an argument, or what ``module`` returns, of the wrong type.
        RuntimeError: when called, what :func:`fused_dropout.functional.drop_path_skip` refuses.

    Example:
        >>> from fused_dropout import nn
        >>> drop_path = nn.DropPathSkip(0.1)
        >>> x, block = torch.ones(4, 8), torch.nn.Linear(8, 8)
        >>> drop_path(x, block, residual=x).shape
        torch.Size([4, 8])
    """

    def forward(  # type: ignore[override]
        self,
        x: Tensor | tuple[Tensor | None, ...],
        module: Callable[..., Tensor],
        residual: Tensor | None = None,
    ) -> Tensor:
        return drop_path_skip(
            x, module, self.drop_prob, self.training, self.scale_by_keep, residual=residual
        )
