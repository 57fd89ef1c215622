"""Dropout layers in training mode, all else in evaluation mode."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

from fused_dropout._core import checks
from fused_dropout._models import dropout_layers


@contextmanager
def mc_dropout(
    model: nn.Module, *, types: type[nn.Module] | Sequence[type[nn.Module]] = ()
) -> Iterator[nn.Module]:
    """Inside the ``with``, the dropout layers of ``model`` drop and all else is in evaluation mode.

    Every module's mode is put back at the end, after an exception too.

    Source: Gal and Ghahramani, "Dropout as a Bayesian Approximation: Representing Model Uncertainty
    in Deep Learning", ICML 2016.

    Dropout layers are: those of this package; of torch.nn; of torchvision (StochasticDepth,
    DropBlock) and timm (DropPath, DropBlock2d); classes with an attribute
    ``drops_in_training = True``; and ``types``. Of torch.nn also layers whose mode decides about
    nothing but their own dropout: LSTM, GRU, RNN and MultiheadAttention with ``dropout`` above 0,
    and TransformerEncoderLayer, which in evaluation may take a path without its dropout layers.

    Of all other classes the source of ``forward``, and of the methods that it names, is read: where
    ``self.training`` decides about dropout and nothing else, as in
    ``F.dropout(x, p, self.training)`` or ``dropout_p=self.p if self.training else 0.0``, the module
    is a dropout layer. Names decide what an expression is about; ``drops_in_training = False`` in a
    class says that it is none. A class without source must be named in ``types``.

    Args:
        model: any module; may itself be a dropout layer.
        types: further classes whose instances are put in training mode, without their children.

    Warns:
        UserWarning: the mode of a class decides about dropout and about something else, so that it
            stays in evaluation mode unless it is named in ``types``.

    Returns:
        A context manager that yields ``model``.

    Raises:
        ValueError: nothing in ``model`` drops, so that all predictions would be alike.
        TypeError: an argument of the wrong type.
    """
    checks.check_module(model, "model")
    further = _checked_types(types)
    modes = [(module, module.training) for module in model.modules()]
    dropping = [m for m, _ in modes if isinstance(m, further) or dropout_layers.drops(m)]
    undecided = {type(m): None for m, _ in modes if dropout_layers.drops_among_others(m)}
    left_out = ", ".join(cls.__name__ for cls in undecided if not issubclass(cls, further))
    if left_out:
        warnings.warn(
            f"the mode of {left_out} decides about dropout and about something else, so it stays "
            "in evaluation mode; to have it drop, name the class in types=",
            stacklevel=3,
        )
    if not dropping:
        raise ValueError(
            f"nothing in this {type(model).__name__} is known to drop; name the classes that do in "
            "types="
        )
    try:
        for module, _ in modes:
            module.training = False
        for module in dropping:
            module.training = True
        yield model
    finally:
        for module, mode in modes:
            module.training = mode


def modules_of(model: Any, modules: Any) -> nn.Module | None:
    """What mc_dropout is to switch, None for nothing."""
    if isinstance(model, nn.Module):
        if modules is not None:
            raise ValueError("modules goes with a function; this model is a Module")
        return model
    if modules is None:
        function = model
        while isinstance(function, functools.partial):
            function = function.func
        owner = function if isinstance(function, nn.Module) else getattr(function, "__self__", None)
        return owner if isinstance(owner, nn.Module) else None
    given = [modules] if isinstance(modules, nn.Module) else modules
    if not isinstance(given, Sequence) or not all(isinstance(item, nn.Module) for item in given):
        raise TypeError(f"modules must be a Module or a sequence of Modules, got {modules!r}")
    return nn.ModuleList(given)


@contextmanager
def dropping(model: nn.Module | None, types: Any) -> Iterator[None]:
    """mc_dropout, or nothing where no module is to be switched."""
    if model is None:
        _checked_types(types)
        yield
    else:
        with mc_dropout(model, types=types):
            yield


def _checked_types(types: Any) -> tuple[type[nn.Module], ...]:
    given = (types,) if isinstance(types, type) else types
    if not isinstance(given, Sequence) or not all(isinstance(item, type) for item in given):
        raise TypeError(f"types must be a class or a sequence of classes, got {types!r}")
    return tuple(given)
