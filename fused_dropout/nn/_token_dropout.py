"""Layers that drop whole tokens: zeroed in place, or taken out of the sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_dropout import functional
from fused_dropout._core import checks
from fused_dropout.nn._dropout import CheckedDropout
from fused_dropout.nn._package_name import ShowsPackage


class TokenDropout(CheckedDropout):
    """Zeroes whole tokens of sequences in training.

    Each token of each example is dropped with probability ``p``, and the others are divided by the
    keep rate; in evaluation the input is returned as it is. The layer calls
    :func:`fused_dropout.functional.token_dropout`, which says what the mask is.

    Args:
        p: drop probability in [0, 1].
        inplace: write the result into the input.

    Shape:
        input: ``[..., L, D]``; output: the same.

    Raises:
        ValueError: p out of range.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that :func:`fused_dropout.functional.token_dropout`
            refuses.
    """

    def forward(self, input: Tensor) -> Tensor:
        return functional.token_dropout(input, self.p, self.training, self.inplace)


class PatchDropout(ShowsPackage, torch.nn.Module):
    """Takes random patches out of each sample in training; replaces timm's layer of this name.

    Of L patches ``max(1, int(L * (1 - prob)))`` stay; in evaluation all do. The layer calls
    :func:`fused_dropout.functional.patch_dropout`.

    Source: Liu et al., "PatchDropout: Economizing Vision Transformers Using Patch Dropout", WACV
    2023.

    Args:
        prob: the part of the patches to drop, in [0, 1].
        num_prefix_tokens: of the first tokens, such as a class token, which always stay.
        ordered: keep the patches in their order.
        return_indices: return which patches stay as well, as timm's PatchDropoutWithIndices does.

    Shape:
        x: ``[N, num_prefix_tokens + L, ...]``; output: ``[N, num_prefix_tokens + K, ...]`` in
        training, and ``x`` in evaluation.

    Raises:
        ValueError: prob or num_prefix_tokens out of range.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that :func:`fused_dropout.functional.patch_dropout`
            refuses.

    Example:
        >>> from fused_dropout import nn
        >>> layer = nn.PatchDropout(0.75)
        >>> layer(torch.zeros(2, 197, 8)).shape
        torch.Size([2, 50, 8])
        >>> layer.eval()(torch.zeros(2, 197, 8)).shape
        torch.Size([2, 197, 8])
    """

    drops_in_training = True  # for fused_dropout.mc_dropout

    def __init__(
        self,
        prob: float = 0.5,
        num_prefix_tokens: int = 1,
        ordered: bool = False,
        return_indices: bool = False,
    ) -> None:
        super().__init__()
        self.prob = checks.check_probability(prob, "prob")
        self.num_prefix_tokens = checks.check_int(num_prefix_tokens, "num_prefix_tokens", 0)
        self.ordered = checks.check_bool(ordered, "ordered")
        self.return_indices = checks.check_bool(return_indices, "return_indices")

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        return functional.patch_dropout(
            x,
            self.prob,
            self.num_prefix_tokens,
            self.ordered,
            self.training,
            self.return_indices,
        )

    def extra_repr(self) -> str:
        shown = f"prob={self.prob}, num_prefix_tokens={self.num_prefix_tokens}"
        shown += f", ordered={self.ordered}"
        return shown + (", return_indices=True" if self.return_indices else "")
