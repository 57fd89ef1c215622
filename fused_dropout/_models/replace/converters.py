"""Which function converts layers of which class: those of this package, and registered ones."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from fused_dropout._models.replace import (
    drop_connect,
    sequences,
    timm_layers,
    torch_layers,
    torchvision_layers,
    transformers_layers,
    weight_drop,
)
from fused_dropout._models.replace.become import has_members

#: Returns the layer that its argument is to become, or a text that says why it stays.
Converter = Callable[[Any], "nn.Module | str"]

# Layers of other packages, by package and class; theirs need not be installed.
_BUILT_IN: dict[tuple[str, str], Converter] = {
    **torch_layers.CONVERTERS,
    **torchvision_layers.CONVERTERS,
    **timm_layers.CONVERTERS,
    **transformers_layers.CONVERTERS,
    **sequences.CONVERTERS,
    **drop_connect.CONVERTERS,
    **weight_drop.CONVERTERS,
}
_registered: dict[type[nn.Module] | tuple[str, str], Converter] = {}


def register_converter(target: type[nn.Module] | str, function: Converter | None) -> None:
    """Teaches :func:`fused_dropout.replace` to convert layers of another class.

    ``function(layer)`` returns a new layer with the parameters and buffers of ``layer``, the same
    objects: the layer *becomes* it, that is, takes its class and attributes, and keeps its mode,
    its hooks and all other attributes of its own. The object that the function returns is not used
    afterwards, so nothing in it may be bound to it. The function must not change ``layer``. To
    leave a layer as it is, it returns a text that says why, for the report.

    A registered function comes before those of this package, and a later one replaces an earlier
    one for the same target. It holds for exactly the class named, as a subclass may mean more.

    Args:
        target: the class; or ``"package:Class"``, for packages that need not be installed: the
            class of this name anywhere in the package, where ``package`` may be the path of a
            module in it, and ``Class`` may have the wildcards ``*`` and ``?``.
        function: the converter; None takes the registered one away.

    Returns:
        None.

    Raises:
        ValueError: a text without a package or a class; None for a target that is not registered.
        TypeError: an argument of the wrong type.

    Example:
        >>> import fused_dropout
        >>> class Zeroing(torch.nn.Module):
        ...     def __init__(self, rate):
        ...         super().__init__()
        ...         self.rate = rate
        ...     def forward(self, x):
        ...         return torch.nn.functional.dropout(x, self.rate, self.training)
        >>> fused_dropout.register_converter(
        ...     Zeroing, lambda layer: fused_dropout.nn.Dropout(layer.rate)
        ... )
        >>> fused_dropout.replace(torch.nn.Sequential(Zeroing(0.3)))
        Sequential(
          (0): fused_dropout.nn.Dropout(p=0.3, inplace=False)
        )
    """
    key = _checked_target(target)
    if function is None:
        if key not in _registered:
            raise ValueError(f"target has no registered converter: {target!r}")
        del _registered[key]
        return
    if not callable(function) or isinstance(function, type):
        raise TypeError(f"function must be a function or None, got {function!r}")
    _registered[key] = _checked(function)


def _checked_target(target: Any) -> type[nn.Module] | tuple[str, str]:
    if isinstance(target, type) and issubclass(target, nn.Module):
        return target
    if not isinstance(target, str):
        raise TypeError(
            f"target must be a class of modules or a text 'package:Class', got {target!r}"
        )
    package, colon, name = target.partition(":")
    if not (package and colon and name):
        raise ValueError(f"target must be of the form 'package:Class', got {target!r}")
    return package, name


def _checked(function: Converter) -> Converter:
    """``function``, whose result has the tensors of its argument and is new."""

    def convert(layer: nn.Module) -> nn.Module | str:
        new = function(layer)
        if isinstance(new, str):
            return new
        if not isinstance(new, nn.Module):
            raise TypeError(
                f"the converter of {type(layer).__name__} must return a module or a text, got "
                f"{type(new).__name__}"
            )
        if new is layer:
            raise ValueError(f"the converter of {type(layer).__name__} returned its argument")
        if has_members(new) and _tensors(new) != _tensors(layer):
            raise ValueError(
                f"the converter of {type(layer).__name__} must return a layer with the same "
                "parameters and buffers, the very objects, so that optimizers and checkpoints fit"
            )
        return new

    return convert


def _tensors(layer: nn.Module) -> set[int]:
    return {id(tensor) for tensor in (*layer.parameters(), *layer.buffers())}


def converter_of(cls: type) -> Converter | None:
    """The converter of exactly this class."""
    if cls in _registered:
        return _registered[cls]
    for table in (_registered, _BUILT_IN):
        for key, function in table.items():
            if isinstance(key, tuple) and _is_named(cls, *key):
                return function
    return None


def is_built_in(converter: Converter) -> bool:
    """Whether it is one of this package, and not registered."""
    return converter in _BUILT_IN.values()


def has_its_own_forward(layer: nn.Module, converter: Converter) -> bool:
    """Whether a forward was set on the object that the converter does not know of."""
    return "forward" in vars(layer) and converter not in weight_drop.WITH_OWN_FORWARD


def known_base(cls: type) -> type | None:
    """The nearest base class that has a converter."""
    return next((base for base in cls.__mro__[1:] if converter_of(base) is not None), None)


def _is_named(cls: type, package: str, name: str) -> bool:
    module = cls.__module__
    in_package = module == package or module.startswith(package + ".")
    return in_package and fnmatchcase(cls.__name__, name)
