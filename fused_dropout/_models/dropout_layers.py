"""Which modules drop in training mode, and which of their attributes are drop rates.

Layers of torch.nn, of this package and of some others are known by their class. Of any other class
the source is read: a module whose own mode decides about dropout and nothing else drops, such as an
attention layer with ``dropout_p=self.attn_drop.p if self.training else 0.0``.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from torch import nn

from fused_dropout._core.private_torch import DropoutBase
from fused_dropout.nn import WeightDrop
from fused_dropout.nn._weight_drop import bare_class_of

_DROPOUT_LAYERS = (
    DropoutBase,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
    nn.TransformerEncoderLayer,
)
# Layers of other packages, by package and class; theirs need not be installed.
_PEERS = {
    ("timm", "DropBlock2d"),
    ("timm", "DropPath"),
    ("torchvision", "DropBlock2d"),
    ("torchvision", "StochasticDepth"),
}
_RATES_OF_LAYERS = ("p", "drop_prob")

# Layers of torch.nn whose mode decides about more than dropout; of other layers the source says it.
_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)

_DROPOUT_WORDS = ("drop", "stochastic_depth")
_DROPPING_FUNCTIONS = ("dropout", "drop_path", "drop_block", "dropconnect", "stochastic_depth")
_HARMLESS_WORDS = ("checkpoint",)  # to compute activations again changes no value


class ModeUse(NamedTuple):
    """What a class reads ``self.training`` for while it runs."""

    dropout: bool
    other: bool
    rates: tuple[str, ...]  # attributes of self that may be drop rates


def drops(module: nn.Module) -> bool:
    """Whether training mode means dropout for this module, and nothing else; children aside."""
    known = _drops_by_class(module)
    if known is not None:
        return known
    use = _mode_use_of(module)
    return use.dropout and not use.other


def drops_among_others(module: nn.Module) -> bool:
    """Whether training mode means dropout for this module, and something else too."""
    if _drops_by_class(module) is not None:
        return False
    use = _mode_use_of(module)
    return use.dropout and use.other


def drop_rates(module: nn.Module) -> tuple[str, ...]:
    """The names of the module's own attributes that are drop rates now: floats in [0, 1]."""
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        names: tuple[str, ...] = ("dropout",) if module.dropout > 0 else ()
    elif _drops_by_class(module) and not isinstance(module, WeightDrop):
        names = _RATES_OF_LAYERS
    else:
        names = _mode_use_of(module).rates
    if isinstance(module, WeightDrop):
        names += ("weight_p",)
    return tuple(name for name in names if _is_rate(getattr(module, name, None)))


def _is_rate(value: Any) -> bool:
    return isinstance(value, float) and 0.0 <= value <= 1.0


def _drops_by_class(module: nn.Module) -> bool | None:
    """Whether it drops, for a module that is known by its class; None for all others."""
    if isinstance(module, WeightDrop):
        return None if _mode_use_of(module).other else True
    if isinstance(module, _DROPOUT_LAYERS):
        return True
    if isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return module.dropout > 0
    cls = type(module)
    marked = getattr(cls, "drops_in_training", None)
    if marked is not None:
        return bool(marked)
    names = {(base.__module__.partition(".")[0], base.__name__) for base in cls.__mro__}
    return None if names.isdisjoint(_PEERS) else True


# ---- reading the source of a class --------------------------------------------------------------


def _mode_use_of(module: nn.Module) -> ModeUse:
    cls: type = type(module)
    if not isinstance(module, WeightDrop):
        return mode_use(cls)
    use = mode_use(bare_class_of(cls) or cls)
    return use._replace(dropout=True, other=use.other or isinstance(module, _NORMS))


@lru_cache(maxsize=4096)
def mode_use(cls: type) -> ModeUse:
    """What ``forward`` of ``cls`` and the methods that it names read ``self.training`` for.

    A method without source, as in an interactive session, counts as one that does not read it.
    """
    uses = [use for function in _running_functions(cls) for use in _uses_of_mode(function, cls)]
    about_dropout = [is_about for is_about, _ in uses]
    rates = [rate for is_about, of_use in uses if is_about for rate in of_use]
    if any(about_dropout) and _has_word(cls.__name__, _DROPOUT_WORDS):
        rates += _RATES_OF_LAYERS
    return ModeUse(any(about_dropout), not all(about_dropout), tuple(dict.fromkeys(rates)))


def _running_functions(cls: type) -> Iterator[FunctionType]:
    """``forward`` and the methods of ``cls`` that it names, directly or through others."""
    own = list(cls.__mro__[: cls.__mro__.index(nn.Module)])
    pending = [("forward", own)]
    seen = set()
    while pending:
        name, bases = pending.pop()
        owner = next((base for base in bases if name in vars(base)), None)
        if owner is None or (owner, name) in seen or owner.__module__.startswith("torch."):
            continue
        seen.add((owner, name))
        function = vars(owner)[name]
        function = getattr(function, "fget", function)  # of a property
        function = inspect.unwrap(getattr(function, "__func__", function))
        if not isinstance(function, FunctionType):
            continue
        yield function
        names = set(_names_in(function.__code__))
        pending += [(called, own) for called in names]
        if "super" in names:
            pending += [(called, own[own.index(owner) + 1 :]) for called in names]


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)


def _uses_of_mode(function: FunctionType, cls: type[nn.Module]) -> Iterator[tuple[bool, list[str]]]:
    """Of each use of ``self.training``: whether it is about dropout, and the rates named there."""
    definition = _definition(function) if "training" in _names_in(function.__code__) else None
    if definition is None:
        return
    self_name = definition.args.args[0].arg
    parents = {child: node for node in ast.walk(definition) for child in ast.iter_child_nodes(node)}
    for node in ast.walk(definition):
        if _attribute_of(self_name, node) != "training":
            continue
        decided = _decided_by(node, parents)
        if isinstance(decided, ast.If) and _mentions(decided.test, _HARMLESS_WORDS):
            continue
        read = [_attribute_of(self_name, part) for part in ast.walk(decided)]
        rates = [name for name in read if _has_word(name, _DROPOUT_WORDS)]
        yield _is_about_dropout(decided, cls), rates


def _definition(function: FunctionType) -> ast.FunctionDef | None:
    """The source of a method; None where it has none, or no ``self``."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    definition = tree.body[0]
    is_method = isinstance(definition, ast.FunctionDef) and bool(definition.args.args)
    return definition if is_method else None  # type: ignore[return-value]


def _decided_by(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> ast.AST:
    """What the mode decides about: the call, conditional expression or statement around it.

    Names in it say whether that is dropout. An expression without such names stands for whatever
    takes its value.
    """
    while True:
        node = parents[node]
        if isinstance(node, (ast.Call, ast.stmt)):
            return node
        if isinstance(node, (ast.IfExp, ast.keyword)) and _mentions(node, _DROPOUT_WORDS):
            return node


def _is_about_dropout(decided: ast.AST, cls: type) -> bool:
    if isinstance(decided, ast.Call):
        arguments = (keyword.arg or "" for keyword in decided.keywords)
        return _mentions(decided.func, _DROPOUT_WORDS) or any(
            _has_word(name, _DROPOUT_WORDS) for name in arguments
        )
    if isinstance(decided, ast.If):
        return (
            _has_word(cls.__name__, _DROPOUT_WORDS)
            or _mentions(decided.test, _DROPOUT_WORDS)
            or all(_mentions(statement, _DROPOUT_WORDS) for statement in decided.body)
        )
    return _mentions(decided, _DROPOUT_WORDS)


# ---- functions that drop ------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def functions_that_drop(cls: type) -> tuple[str, ...]:
    """The functions that ``forward`` of ``cls`` and its methods call to drop, in the mode or not.

    By their names, as ``F.dropout``, or by an argument: ``F.scaled_dot_product_attention`` with
    ``dropout_p=``, which is shown too. Calls of other modules count as theirs.
    """
    found: list[str] = []
    for function in _running_functions(cls):
        definition = _definition(function)
        if definition is None:
            continue
        local = _local_names(definition)
        calls = (node for node in ast.walk(definition) if isinstance(node, ast.Call))
        found += (shown for call in calls if (shown := _dropping_call(call, local)))
    return tuple(dict.fromkeys(found))


def _local_names(definition: ast.FunctionDef) -> set[str]:
    """What the function itself gives a name to: ``self``, other arguments, variables."""
    nodes = list(ast.walk(definition))
    stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return stored | {node.arg for node in nodes if isinstance(node, ast.arg)}


def _dropping_call(call: ast.Call, local: set[str]) -> str:
    """How a call that drops is shown, "" for all others."""
    root: ast.AST = call.func
    while isinstance(root, ast.Attribute):
        root = root.value
    is_local = isinstance(root, ast.Name) and root.id in local
    function = ast.unparse(call.func)
    if not is_local and _has_word(function.rpartition(".")[2], _DROPPING_FUNCTIONS):
        return function
    if is_local and isinstance(call.func, ast.Attribute):
        return ""  # a method, or a module that the model holds
    for keyword in call.keywords:
        if _has_word(keyword.arg or "", _DROPOUT_WORDS):
            return "" if isinstance(keyword.value, ast.Constant) else f"{function}({keyword.arg}=)"
    return ""


def _attribute_of(self_name: str, node: ast.AST) -> str:
    """The attribute of self that ``node`` reads, "" for none."""
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
        owner = node.value
        return node.attr if isinstance(owner, ast.Name) and owner.id == self_name else ""
    return ""


def _mentions(node: ast.AST, words: tuple[str, ...]) -> bool:
    names = (
        getattr(part, field, None) for part in ast.walk(node) for field in ("id", "attr", "arg")
    )
    return any(isinstance(name, str) and _has_word(name, words) for name in names)


def _has_word(name: str, words: tuple[str, ...]) -> bool:
    return any(word in name.lower() for word in words)
