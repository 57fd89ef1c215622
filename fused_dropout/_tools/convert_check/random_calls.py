"""Which modules of a model draw random numbers in training, whatever they are written with."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fused_dropout._models.check.unchanged import unchanged
from fused_dropout._models.replace.become import modules_of


def unexplained_calls(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], *, explained: Collection[str]
) -> dict[str, str]:
    """By the names of the modules that are not ``explained``: the operators that they drew by."""
    recorder = _Recorder(model)
    with unchanged(model, training=True), _followed(recorder), recorder:
        model(*args, **kwargs)
    return {
        name: ", ".join(sorted(operators))
        for name, operators in recorder.found.items()
        if name not in explained
    }


class _Recorder(TorchDispatchMode):
    """Notes operators that torch says are random, with the innermost module that runs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {id(module): name for name, module in modules_of(model)}
        self.running = [""]
        self.found: dict[str, set[str]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags and not _drops_nothing(
            func, kwargs or {}
        ):
            self.found.setdefault(self.running[-1], set()).add(str(func))
        return func(*args, **(kwargs or {}))


def _drops_nothing(func: Any, kwargs: Mapping[str, Any]) -> bool:
    """Attention operators have the tag, and draw nothing without a rate."""
    return "attention" in str(func) and not kwargs.get("dropout_p", 0.0)


@contextmanager
def _followed(recorder: _Recorder) -> Iterator[None]:
    def enter(module: nn.Module, args: Any) -> None:
        recorder.running.append(recorder.names.get(id(module), recorder.running[-1]))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        recorder.running.pop()

    handles = [
        torch.nn.modules.module.register_module_forward_pre_hook(enter),
        torch.nn.modules.module.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
