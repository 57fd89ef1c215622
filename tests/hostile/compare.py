"""Whether a result is the right one, element by element.

The truth is the reference in float64 on the same operands. An error may be twice that of the
reference run in the dtype under test, plus a few units in the last place.
"""

from __future__ import annotations

import torch
from torch import Tensor

ULPS = 8
ULPS_FLOAT64 = 64  # no wider dtype holds the truth, so it is as far off as what is judged


def mismatch(
    ours: Tensor,
    truth: Tensor,
    own: Tensor,
    *,
    elementwise: bool,
    slack: float = 0.0,
    extra_ulps: float = 0.0,
) -> str | None:
    """What is wrong with ``ours``, or None.

    Args:
        ours: a result of the package.
        truth: in float64.
        own: the reference's, in the dtype under test.
        elementwise: each element is held to its own size, and zeros to exactly 0. Otherwise all
            are held to the largest, for operators that sum.
        slack: a further absolute error that is allowed.
        extra_ulps: further units in the last place that are allowed.
    """
    if ours.shape != truth.shape:
        return f"shape {list(ours.shape)}, expected {list(truth.shape)}"
    if ours.dtype != own.dtype:
        return f"dtype {ours.dtype}, expected {own.dtype}"
    if ours.numel() == 0:
        return None
    if ours.dtype.is_complex:
        parts = (torch.view_as_real(t.resolve_conj()) for t in (ours, truth, own))
        options = {"slack": slack, "extra_ulps": extra_ulps}
        return mismatch(*parts, elementwise=elementwise, **options)
    if ours.dtype == torch.bool or not ours.dtype.is_floating_point:
        return _where(ours != own, ours, own, own)
    limits = torch.finfo(ours.dtype)
    ulps = extra_ulps + (ULPS_FLOAT64 if ours.dtype == torch.float64 else ULPS)
    wide = ours.double()
    rounded = truth.to(ours.dtype).double()  # an overflow is infinite here too
    regular = rounded.isfinite() & own.isfinite()
    near_overflow = truth.abs() >= limits.max * (1 - 4 * limits.eps)
    same = _equal(wide, rounded) | _equal(wide, own.double())
    size = truth.abs()
    if not elementwise:
        finite = size[regular]
        size = (finite.max() if finite.numel() else torch.zeros(())).expand_as(size)
    tiny = limits.smallest_normal * limits.eps * (size > 0).double()
    bound = 2 * (own.double() - truth).abs() + ulps * (limits.eps * size + tiny)
    error = (wide - truth).abs()
    # A comparison with NaN is false, so that a NaN of ours never passes for a number.
    right = torch.where(regular, error <= bound + slack, same)
    right |= near_overflow & (same | (wide.abs() >= limits.max * (1 - 4 * limits.eps)))
    return _where(~right, ours, truth, own)


def _equal(a: Tensor, b: Tensor) -> Tensor:
    return (a == b) | (a.isnan() & b.isnan())


def _where(wrong: Tensor, ours: Tensor, truth: Tensor, own: Tensor) -> str | None:
    count = int(wrong.sum())
    if count == 0:
        return None
    first = tuple(wrong.nonzero()[0].tolist())
    return (
        f"{count} of {wrong.numel()} elements are wrong, the first at {first}: {ours[first]!r}, "
        f"expected {truth[first].item()!r} ({own[first]!r} in that dtype)"
    )
