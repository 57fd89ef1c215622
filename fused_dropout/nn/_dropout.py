"""Dropout modules: those of torch.nn under the same names, and locked dropout for sequences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fused_dropout import functional
from fused_dropout._core import checks
from fused_dropout._core.private_torch import DropoutBase
from fused_dropout._core.rates import CONVENTIONS, Convention
from fused_dropout.functional._locked_dropout import Sequences
from fused_dropout.nn._package_name import ShowsPackage


class CheckedDropout(ShowsPackage, DropoutBase):
    """torch's constructor, with the types of its arguments checked."""

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        checks.check_probability(p)
        super().__init__(p, checks.check_bool(inplace, "inplace"))


class Dropout(CheckedDropout, torch.nn.Dropout):
    """Zeroes elements with probability ``p`` in training; replaces :class:`torch.nn.Dropout`.

    The others are divided by the keep rate; in evaluation the input is returned as it is. The layer
    calls :func:`fused_dropout.functional.dropout`, which says what the mask is.

    Args:
        p: drop probability in [0, 1].
        inplace: write the result into the input.
        broadcast_dims: dimensions along which the mask is shared, as flax names them; default:
            none.
        convention: ``"inverted"`` as described, or ``"paper"`` (Srivastava et al. 2014): unscaled
            in training, multiplied by the keep rate in evaluation.

    Shape:
        input: any; output: the same, in the input's memory format.

    Raises:
        ValueError: p or convention out of range.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that :func:`fused_dropout.functional.dropout` refuses.

    Example:
        >>> from fused_dropout import nn
        >>> layer = nn.Dropout(0.5)
        >>> layer(torch.ones(4)).shape
        torch.Size([4])
        >>> layer.eval()(torch.ones(4))
        tensor([1., 1., 1., 1.])
    """

    def __init__(
        self,
        p: float = 0.5,
        inplace: bool = False,
        *,
        broadcast_dims: Sequence[int] = (),
        convention: Convention = "inverted",
    ) -> None:
        checks.check_choice(convention, "convention", CONVENTIONS)
        super().__init__(p, inplace)
        self.broadcast_dims = checks.as_ints(broadcast_dims, "broadcast_dims")
        self.convention = convention

    def forward(self, input: Tensor) -> Tensor:
        return functional.dropout(
            input,
            self.p,
            self.training,
            self.inplace,
            broadcast_dims=self.broadcast_dims,
            convention=self.convention,
        )

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        if self.broadcast_dims:
            shown += f", broadcast_dims={self.broadcast_dims}"
        if self.convention != "inverted":
            shown += f", convention={self.convention!r}"
        return shown


class Dropout1d(CheckedDropout, torch.nn.Dropout1d):
    """Zeroes channels of sequences in training; replaces :class:`torch.nn.Dropout1d`.

    Each channel of each example is dropped with probability ``p``, and the others are divided by
    the keep rate; in evaluation the input is returned as it is. The layer calls
    :func:`fused_dropout.functional.dropout1d`, which says what the mask is.

    Source: Tompson et al., "Efficient Object Localization Using Convolutional Networks", CVPR 2015.

    Args:
        p: drop probability in [0, 1].
        inplace: write the result into the input.

    Shape:
        input: ``[N, C, L]`` or ``[C, L]``; output: the same.

    Raises:
        ValueError: p out of range.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that :func:`fused_dropout.functional.dropout1d` refuses.
    """

    def forward(self, input: Tensor) -> Tensor:
        return functional.dropout1d(input, self.p, self.training, self.inplace)


class Dropout2d(CheckedDropout, torch.nn.Dropout2d):
    """Zeroes channels of images in training; replaces :class:`torch.nn.Dropout2d`.

    Each channel of each example is dropped with probability ``p``, and the others are divided by
    the keep rate; in evaluation the input is returned as it is. The layer calls
    :func:`fused_dropout.functional.dropout2d`, which says what the mask is.

    Source: Tompson et al., "Efficient Object Localization Using Convolutional Networks", CVPR 2015.

    Args:
        p: drop probability in [0, 1].
        inplace: write the result into the input.

    Shape:
        input: ``[N, C, H, W]``; output: the same. As in torch, any number of dimensions from 2 on
        is read as ``[N, C, ...]``, with a warning.

    Raises:
        ValueError: p out of range.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that :func:`fused_dropout.functional.dropout2d` refuses.
    """

    def forward(self, input: Tensor) -> Tensor:
        return functional.dropout2d(input, self.p, self.training, self.inplace)


class Dropout3d(CheckedDropout, torch.nn.Dropout3d):
    """Zeroes channels of volumes in training; replaces :class:`torch.nn.Dropout3d`.

    Each channel of each example is dropped with probability ``p``, and the others are divided by
    the keep rate; in evaluation the input is returned as it is. The layer calls
    :func:`fused_dropout.functional.dropout3d`, which says what the mask is.

    Source: Tompson et al., "Efficient Object Localization Using Convolutional Networks", CVPR 2015.

    Args:
        p: drop probability in [0, 1].
        inplace: write the result into the input.

    Shape:
        input: ``[N, C, D, H, W]`` or ``[C, D, H, W]``; output: the same. As in torch, other numbers
        of dimensions are read as ``[C, ...]``, with a warning.

    Raises:
        ValueError: p out of range.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that :func:`fused_dropout.functional.dropout3d` refuses.
    """

    def forward(self, input: Tensor) -> Tensor:
        return functional.dropout3d(input, self.p, self.training, self.inplace)


class AlphaDropout(CheckedDropout, torch.nn.AlphaDropout):
    """Dropout after a SELU, which keeps mean and variance; replaces :class:`torch.nn.AlphaDropout`.

    In training elements are set to SELU's lowest value with probability ``p``, and an affine map
    keeps mean 0 and variance 1; in evaluation the input is returned as it is. The layer calls
    :func:`fused_dropout.functional.alpha_dropout`, which has the formula.

    Source: Klambauer et al., "Self-Normalizing Neural Networks", NeurIPS 2017, section 3.

    Args:
        p: drop probability in [0, 1].
        inplace: not used, as in torch: SELU needs its result for backward.
        broadcast_dims: dimensions along which the mask is shared; default: none.

    Shape:
        input: any; output: the same.

    Raises:
        ValueError: p out of range.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that :func:`fused_dropout.functional.alpha_dropout`
            refuses.
    """

    def __init__(
        self, p: float = 0.5, inplace: bool = False, *, broadcast_dims: Sequence[int] = ()
    ) -> None:
        super().__init__(p, inplace)
        self.broadcast_dims = checks.as_ints(broadcast_dims, "broadcast_dims")

    def forward(self, input: Tensor) -> Tensor:
        return functional.alpha_dropout(
            input, self.p, self.training, broadcast_dims=self.broadcast_dims
        )

    def extra_repr(self) -> str:
        dims = f", broadcast_dims={self.broadcast_dims}" if self.broadcast_dims else ""
        return super().extra_repr() + dims


class FeatureAlphaDropout(CheckedDropout, torch.nn.FeatureAlphaDropout):
    """Alpha dropout of whole channels; replaces :class:`torch.nn.FeatureAlphaDropout`.

    In training channels are set to SELU's lowest value with probability ``p``, and an affine map
    keeps mean 0 and variance 1; in evaluation the input is returned as it is. The layer calls
    :func:`fused_dropout.functional.feature_alpha_dropout`, which has the formula.

    Source: Klambauer et al., "Self-Normalizing Neural Networks", NeurIPS 2017, section 3.

    Args:
        p: drop probability in [0, 1].
        inplace: not used, as in torch: SELU needs its result for backward.

    Shape:
        input: ``[N, C, ...]``; output: the same.

    Raises:
        ValueError: p out of range.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that
            :func:`fused_dropout.functional.feature_alpha_dropout` refuses.
    """

    def forward(self, input: Tensor) -> Tensor:
        return functional.feature_alpha_dropout(input, self.p, self.training)


class LockedDropout(CheckedDropout):
    """Dropout of sequences with one mask for all steps, drawn anew in every call.

    In training an element of an example's features is dropped in every step or in none, with
    probability ``p``, and the others are divided by the keep rate; in evaluation the input is
    returned as it is. The layer calls :func:`fused_dropout.functional.locked_dropout`.

    Also called variational dropout: the ``VariationalDropout`` or ``LockedDropout`` of AWD-LSTM and
    of other packages for sequences (not the variational dropout of Kingma et al., which learns its
    rate).

    Source: Gal and Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent Neural
    Networks", NeurIPS 2016.

    Args:
        p: drop probability in [0, 1].
        inplace: write the result into the input.
        batch_first: the input is ``[N, T, ...]``, not ``[T, N, ...]``.

    Shape:
        input: ``[T, N, ...]``, or ``[N, T, ...]`` with ``batch_first``; or a
        :class:`torch.nn.utils.rnn.PackedSequence`, of either kind. Output: the same.

    Raises:
        ValueError: p out of range.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that :func:`fused_dropout.functional.locked_dropout`
            refuses.
    """

    def __init__(self, p: float = 0.5, inplace: bool = False, batch_first: bool = False) -> None:
        super().__init__(p, inplace)
        self.batch_first = checks.check_bool(batch_first, "batch_first")

    def forward(self, input: Sequences) -> Sequences:
        return functional.locked_dropout(
            input, self.p, self.training, self.inplace, batch_first=self.batch_first
        )

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, batch_first={self.batch_first}"
