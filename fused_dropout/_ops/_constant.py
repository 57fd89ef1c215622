"""Operators without derivatives: masks and noise, which depend on the random state alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from fused_dropout._core.private_torch import tensor_arguments
from fused_dropout._ops._differentiable import NAMESPACE, item_by_item


class Constant(NamedTuple):
    """One operator. Its results need no gradient, whatever its arguments do."""

    name: str
    fake: Callable[..., Any]  # results of the right shape, dtype and device


def register_constant(op: Constant, library: torch.library.Library) -> None:
    """Tells torch all of ``op``, whose schema the extension has defined."""
    operator = getattr(getattr(torch.ops, NAMESPACE), op.name).default
    tensors = tensor_arguments(operator)

    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return item_by_item(
            lambda items, settings: operator(*items, *settings),
            info.batch_size,
            in_dims[:tensors],
            args[:tensors],
            args[tensors:],
        )

    torch.library.register_fake(f"{NAMESPACE}::{op.name}", op.fake, lib=library)
    torch.library.register_vmap(f"{NAMESPACE}::{op.name}", vmap, lib=library)
    library.impl(op.name, torch.library.fallthrough_kernel, "Autograd")
