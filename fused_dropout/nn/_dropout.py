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


class _CheckedDropout(ShowsPackage, DropoutBase):
    """torch's constructor, with the types of its arguments checked."""

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        checks.check_probability(p)
        super().__init__(p, checks.check_bool(inplace, "inplace"))


class Dropout(_CheckedDropout, torch.nn.Dropout):
    """:class:`torch.nn.Dropout` on this package's mask.

    In training every element is dropped with probability ``p`` and the others are divided by the
    keep rate; in evaluation the input is returned as it is. See
    :func:`fused_dropout.functional.dropout`.

    Args:
        p: drop probability in [0, 1].
        inplace: write the result into the input.
        broadcast_dims: dimensions along which the mask is shared (flax's name).
        convention: ``"inverted"`` as described, or ``"paper"`` (Srivastava et al. 2014): unscaled
            in training, multiplied by the keep rate in evaluation.

    Shape:
        input and output of any shape, the output in the input's memory format.

    Raises:
        ValueError: p or convention out of range.
        TypeError: an argument of the wrong type.
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


class Dropout1d(_CheckedDropout, torch.nn.Dropout1d):
    """:class:`torch.nn.Dropout1d`: drops whole channels of ``[N, C, L]`` or ``[C, L]``.

    See :func:`fused_dropout.functional.dropout1d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return functional.dropout1d(input, self.p, self.training, self.inplace)


class Dropout2d(_CheckedDropout, torch.nn.Dropout2d):
    """:class:`torch.nn.Dropout2d`: drops whole channels of ``[N, C, H, W]``.

    See :func:`fused_dropout.functional.dropout2d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return functional.dropout2d(input, self.p, self.training, self.inplace)


class Dropout3d(_CheckedDropout, torch.nn.Dropout3d):
    """:class:`torch.nn.Dropout3d`: drops whole channels of ``[N, C, D, H, W]``.

    See :func:`fused_dropout.functional.dropout3d`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return functional.dropout3d(input, self.p, self.training, self.inplace)


class AlphaDropout(_CheckedDropout, torch.nn.AlphaDropout):
    """:class:`torch.nn.AlphaDropout`: keeps mean 0 and variance 1 of what follows a SELU.

    Like torch's it takes ``inplace`` and does not use it (SELU needs its result for backward);
    :func:`fused_dropout.functional.alpha_dropout` does.

    Args:
        p: drop probability in [0, 1].
        inplace: not used.
        broadcast_dims: dimensions along which the mask is shared, as in :class:`Dropout`.

    Raises:
        ValueError: p out of range.
        TypeError: an argument of the wrong type.
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


class FeatureAlphaDropout(_CheckedDropout, torch.nn.FeatureAlphaDropout):
    """:class:`torch.nn.FeatureAlphaDropout`: :class:`AlphaDropout` of whole channels.

    See :func:`fused_dropout.functional.feature_alpha_dropout`.
    """

    def forward(self, input: Tensor) -> Tensor:
        return functional.feature_alpha_dropout(input, self.p, self.training)


class LockedDropout(_CheckedDropout):
    """Dropout of a sequence with one mask for all its steps, drawn anew in every call.

    Also called variational dropout: the ``VariationalDropout`` or ``LockedDropout`` of AWD-LSTM
    and of other packages for sequences (not the variational dropout of Kingma et al., which learns
    its rate). See :func:`fused_dropout.functional.locked_dropout` for the source.

    Args:
        p: drop probability in [0, 1].
        inplace: write the result into the input.
        batch_first: the input is ``[N, T, ...]``, not ``[T, N, ...]``.

    Shape:
        input and output ``[T, N, ...]``, or ``[N, T, ...]`` with ``batch_first``; or a
        :class:`torch.nn.utils.rnn.PackedSequence`, of either kind.

    Raises:
        ValueError: p out of range.
        TypeError: an argument of the wrong type.
        RuntimeError: an input of fewer than 2 dimensions, when called.
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
