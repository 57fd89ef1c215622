"""Batch after batch: what a DataLoader gives, and what of it the model gets."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fused_dropout._core.private_torch import flatten, unflatten


def is_loader(x: Any) -> bool:
    """Whether ``x`` is an iterable of batches, and not a batch; arrays are neither."""
    is_batch = isinstance(x, (Tensor, Mapping, list, tuple, str, bytes)) or hasattr(x, "__array__")
    return isinstance(x, Iterable) and not is_batch


def loaded(
    loader: Iterable[Any], inputs: Callable[[Any], Any] | None, modules: nn.Module | None
) -> Iterator[Any]:
    """The model's argument for each batch, on the device of its first parameter or buffer."""
    device = _device_of(modules)
    for batch in loader:
        x = _first(batch) if inputs is None else inputs(batch)
        yield x if device is None else _moved(x, device)


def _first(batch: Any) -> Any:
    """The inputs of (inputs, labels), as data sets of pairs give; all of any other batch."""
    return batch[0] if type(batch) in (list, tuple) and batch else batch


def _device_of(modules: nn.Module | None) -> torch.device | None:
    if modules is None:
        return None
    tensors = (*modules.parameters(), *modules.buffers())
    return tensors[0].device if tensors else None


def _moved(x: Any, device: torch.device) -> Any:
    leaves, structure = flatten(dict(x) if isinstance(x, Mapping) else x)
    moved = [
        leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf for leaf in leaves
    ]
    return unflatten(moved, structure)
