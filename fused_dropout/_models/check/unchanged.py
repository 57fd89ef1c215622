"""Runs a model for inspection and leaves it as it was."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def unchanged(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Inside, all modules are in the mode ``training``; at the end the model is what it was.

    That is: attributes of all modules, their modes and hooks among them, all buffers, and torch's
    random state. What is inside works on copies of the buffers. Gradients are off and warnings are
    silent.
    """
    modules = list(model.modules())
    modes = [module.training for module in modules]
    attributes = [dict(vars(module)) for module in modules]
    contents = [[(each, each.copy()) for each in _dicts(module)] for module in modules]
    buffers = [
        (module, name, buffer)
        for module in modules
        for name, buffer in module.named_buffers(recurse=False, remove_duplicate=False)
        if not isinstance(buffer, nn.UninitializedBuffer)
    ]
    try:
        with (
            torch.random.fork_rng(_cuda_devices(model)),
            torch.inference_mode(False),
            torch.no_grad(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            copies: dict[Tensor, Tensor] = {}
            for module, name, buffer in buffers:
                setattr(module, name, copies.setdefault(buffer, buffer.clone()))
            for module in modules:
                module.training = training
            yield
    finally:
        for module, name, buffer in buffers:
            setattr(module, name, buffer)
        for module, mode, before, members in zip(modules, modes, attributes, contents, strict=True):
            module.training = mode
            vars(module).clear()
            vars(module).update(before)
            for content, copy in members:
                content.clear()
                content.update(copy)


def _dicts(module: nn.Module) -> list[dict[Any, Any]]:
    """The module's own dicts, which hold its tensors, children and hooks."""
    return [value for value in vars(module).values() if type(value) in (dict, OrderedDict)]


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    tensors = [*model.parameters(), *model.buffers()]
    return list({tensor.device for tensor in tensors if tensor.is_cuda})
