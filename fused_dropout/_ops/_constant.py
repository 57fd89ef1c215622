"""Operators without derivatives: masks and noise, which depend on the random state alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fused_dropout._core.private_torch import tensor_arguments
from fused_dropout._ops._differentiable import NAMESPACE, item_by_item


def register_constant(name: str, fake: Callable[..., Any], library: torch.library.Library) -> None:
    """Tells torch all of the operator ``name``, whose schema the extension has defined.

    Its results need no gradient, whatever its arguments do: they are constants.
    """
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default
    tensors = tensor_arguments(operator)

    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return item_by_item(
            lambda items, settings: operator(*items, *settings),
            info.batch_size,
            in_dims[:tensors],
            args[:tensors],
            args[tensors:],
        )

    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
    torch.library.register_vmap(f"{NAMESPACE}::{name}", vmap, lib=library)
    library.impl(name, torch.library.fallthrough_kernel, "Autograd")
