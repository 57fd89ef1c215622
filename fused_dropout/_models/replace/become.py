"""A layer becomes another one and back: it stays one object, whose class and attributes change.

So all that holds the layer goes on holding it: its parents, however many, and lists, hooks,
closures and compiled code that torch does not know of. torch.nn's lazy layers and parametrizations
change the class of an object in the same way. What is needed to go back is an attribute of the
object, and goes with it through ``deepcopy`` and ``pickle``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

_KEY = "_fused_dropout_original"
_MEMBERS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_SIMPLE = (bool, int, float, str, tuple, type(None))
HOOKS = tuple(name for name in vars(nn.Module()) if "_hooks" in name)


@dataclass
class Original:
    """What a layer was.

    Attributes:
        cls: its class.
        added: attributes that it did not have.
        removed: attributes that what it became has as a tensor or a method.
        changed: of its other attributes that have changed, the old value and the new one.
        moved: tensors that another module holds now: (old owner, old name, new owner, new name).
        inner: modules in the old layer that the new one does not hold.
    """

    cls: type[nn.Module]
    added: list[str] = field(default_factory=list)
    removed: dict[str, Any] = field(default_factory=dict)
    changed: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    moved: list[tuple[nn.Module, str, nn.Module, str]] = field(default_factory=list)
    inner: list[nn.Module] = field(default_factory=list)


def original_of(layer: nn.Module) -> Original | None:
    """What the layer was before it became what it is; None: it has always been that."""
    original: Original | None = vars(layer).get(_KEY)
    return original


def modules_of(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module with its first qualified name; by identity, so that no ``__eq__`` is asked.

    TorchScript's modules are not entered: they are no Python objects inside.
    """
    seen: set[int] = set()
    pending = [("", model)]
    while pending:
        name, module = pending.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        yield name, module
        children = vars(module).get("_modules") or {}
        if isinstance(children, dict):
            prefix = f"{name}." if name else ""
            inner = [(prefix + key, child) for key, child in children.items() if child is not None]
            pending += reversed(inner)


@contextmanager
def all_or_nothing(model: nn.Module) -> Iterator[None]:
    """Where the body raises, every module of ``model`` is what it was; tensors are not copied."""
    before = [
        (module, type(module), dict(vars(module)), [(d, d.copy()) for d in _containers(module)])
        for _, module in modules_of(model)
    ]
    try:
        yield
    except BaseException:
        for module, cls, attributes, contents in before:
            object.__setattr__(module, "__class__", cls)
            vars(module).clear()
            vars(module).update(attributes)
            for container, content in contents:
                container.clear()
                container.update(content)
        raise


def _containers(module: nn.Module) -> list[Any]:
    return [value for value in vars(module).values() if isinstance(value, (dict, set))]


def become(layer: nn.Module, new: nn.Module) -> None:
    """Makes ``layer`` what ``new`` is; its mode, hooks and other attributes stay.

    ``new`` itself is not used afterwards. Its tensors and modules are to be those of ``layer``; of
    one that has none, those that were added to ``layer`` stay.
    """
    _check_hooks(new)
    state = vars(layer)
    original = Original(type(layer))
    kept = _attributes_of_every_module()
    if has_members(new):
        kept = kept.difference(_MEMBERS)
    for key, value in vars(new).items():
        if key in kept:
            continue
        if key not in state:
            original.added.append(key)
        elif not _same(key, state[key], value):
            original.changed[key] = (_leaf(state[key]), value)
    if not original.changed.keys().isdisjoint(_MEMBERS):
        original.moved = list(_moved_tensors(layer, new))
        stay = {id(module) for _, module in modules_of(new)}
        original.inner = [m for _, m in modules_of(layer) if m is not layer and id(m) not in stay]
    hidden = ("forward", *(name for key in _MEMBERS[:3] for name in vars(new)[key]))
    original.removed = {name: _leaf(state.pop(name)) for name in hidden if name in state}
    for module in original.inner:  # what a forward has left there can be copied only as a leaf
        vars(module).update({name: _leaf(value) for name, value in vars(module).items()})
    object.__setattr__(layer, "__class__", type(new))
    for key in original.added:
        state[key] = vars(new)[key]
    for key, (_, value) in original.changed.items():
        state[key] = value
    # The layer itself has the tensors now that `new` had.
    original.moved = [
        (a, b, layer if owner is new else owner, c) for a, b, owner, c in original.moved
    ]
    state[_KEY] = original


def share_members(new: nn.Module, layer: nn.Module) -> None:
    """Gives ``new`` the parameters, buffers and modules of ``layer``, those that were added too.

    Modules that ``new`` has itself, such as an activation, stay beside them.
    """
    own = new._modules
    vars(new).update({key: vars(layer)[key] for key in _MEMBERS})
    if own:
        vars(new)["_modules"] = {**layer._modules, **own}


def has_members(module: nn.Module) -> bool:
    """Whether it has parameters, buffers or modules."""
    return any(vars(module)[key] for key in _MEMBERS)


def has_hooks(module: nn.Module) -> bool:
    """Whether anything is called when it is, or when its state_dict is read or loaded."""
    return any(vars(module)[name] for name in HOOKS)


def forget_original(layer: nn.Module) -> None:
    """What the layer was is of no interest any more."""
    vars(layer).pop(_KEY, None)


def go_back(layer: nn.Module) -> None:
    """Makes the layer what it was; attributes that have been set since keep their new values."""
    state = vars(layer)
    original: Original = state.pop(_KEY)
    tensors = [
        (old, name, vars(owner)["_parameters"].get(key), vars(owner)["_buffers"].get(key))
        for old, name, owner, key in original.moved
    ]
    for key in original.added:
        state.pop(key, None)
    for key, (old, new) in original.changed.items():
        if key in _MEMBERS or _same(key, state.get(key), new):
            state[key] = old
    state.update(original.removed)
    object.__setattr__(layer, "__class__", original.cls)
    for owner, name, parameter, buffer in tensors:
        tensor = buffer if parameter is None else parameter
        if getattr(owner, name) is not tensor:
            setattr(owner, name, tensor)
    for module in original.inner:
        module.training = layer.training


def _leaf(value: Any) -> Any:
    """A tensor, or a list with tensors, out of its graph."""
    if type(value) is list and any(isinstance(each, Tensor) for each in value):
        return [_leaf(each) for each in value]
    return value.detach() if isinstance(value, Tensor) and value.grad_fn is not None else value


def _attributes_of_every_module() -> frozenset[str]:
    return frozenset(vars(nn.Module()))


def _same(key: str, one: Any, other: Any) -> bool:
    """Whether an attribute has a value already; the same tensors and modules, in containers."""
    if key == "_non_persistent_buffers_set":
        return bool(one == other)
    if key in _MEMBERS:
        return one.keys() == other.keys() and all(one[name] is other[name] for name in one)
    return one is other or (type(one) in _SIMPLE and type(one) is type(other) and one == other)


def _moved_tensors(
    layer: nn.Module, new: nn.Module
) -> Iterator[tuple[nn.Module, str, nn.Module, str]]:
    places = {id(tensor): (owner, name) for owner, name, tensor in _tensors_of(new)}
    for owner, name, tensor in _tensors_of(layer):
        if id(tensor) in places:
            yield (owner, name, *places[id(tensor)])


def _tensors_of(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for _, inner in modules_of(module):
        for members in (vars(inner)["_parameters"], vars(inner)["_buffers"]):
            for name, tensor in members.items():
                if tensor is not None:
                    yield inner, name, tensor


def _check_hooks(new: nn.Module) -> None:
    """A hook on the new layer would be lost, or stay bound to an object that is not used."""
    for name in _attributes_of_every_module().difference(_MEMBERS):
        hooks = vars(new).get(name)
        if isinstance(hooks, dict) and hooks:
            raise ValueError(
                f"a converter must return a layer without hooks of its own, got {name} on a "
                f"{type(new).__name__}"
            )
