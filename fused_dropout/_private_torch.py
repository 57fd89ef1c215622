"""Every use of torch's private API in this package, each with a public fallback that is slower.

The rest of the package uses the names at the end without knowing what is behind them. Where a
release of torch lacks a private name, its fallback takes the general path: right, but with more
work in every call.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad


def _query_transforms() -> Callable[[], bool]:
    """Fallback: always assume a transform; the Function for transforms is right without one too."""
    query: Callable[[], bool] | None = getattr(torch._C, "_are_functorch_transforms_active", None)
    return query or (lambda: True)


def _query_dual_level() -> Callable[[], bool]:
    """Fallback: always assume a level; whether a tensor has a tangent is asked of the tensor."""
    if not hasattr(forward_ad, "_current_level"):
        return lambda: True
    return lambda: forward_ad._current_level >= 0


def _query_modes() -> Callable[[], bool]:
    """Fallback: always assume a mode; a random state that is drawn on the device suits all."""
    count: Callable[[], int] | None = getattr(torch._C, "_len_torch_dispatch_stack", None)
    return (lambda: True) if count is None else (lambda: count() > 0)


def _count_forward_levels() -> Callable[[], int]:
    """Fallback: none is seen, and forward mode over forward mode is not refused."""
    functorch = getattr(torch._C, "_functorch", None)
    stack = getattr(functorch, "get_interpreter_stack", None)
    kinds = getattr(functorch, "TransformType", None)
    if functorch is None or stack is None or kinds is None:
        return lambda: 0
    return lambda: sum(level.key() == kinds.Jvp for level in stack() or ())


def call_of(operator: Any) -> Callable[..., Any]:
    """What an operator overload calls. Fallback: the overload itself."""
    return getattr(operator, "_op", operator)


def _guard_below_autograd() -> Callable[[], AbstractContextManager[Any]] | None:
    """Fallback: none. Then torch.library.register_autograd stands in for our own autograd kernels.

    It loses the tangents of raw operators outside torch.func; functions and modules are right.
    """
    return getattr(torch._C, "_AutoDispatchBelowAutograd", None)


def _query_view_kinds() -> Callable[[Tensor], bool]:
    """Fallback: no view is known to be plain; what may not be plain is written by torch's copy_."""
    kinds: Any = getattr(torch._C, "_autograd", None)
    kind_of = getattr(kinds, "_get_creation_meta", None)
    if kind_of is None:
        return lambda view: False
    plain = kinds.CreationMeta.DEFAULT
    return lambda view: kind_of(view) == plain


#: Whether a torch.func transform (grad, vmap, jvp, ...) is active.
transforms_active = _query_transforms()

#: Whether torch.autograd.forward_ad.dual_level is active.
in_dual_level = _query_dual_level()

#: Whether a TorchDispatchMode records or replaces operators (make_fx, FakeTensorMode, ...).
modes_active = _query_modes()

#: Context in which operators run without their autograd kernels; None where torch has none.
below_autograd = _guard_below_autograd()

#: Whether autograd made a view as one view of one tensor, in grad mode: it can be written to.
is_plain_view = _query_view_kinds()

#: How many of torch.func's forward-mode transforms are nested here.
forward_levels = _count_forward_levels()
