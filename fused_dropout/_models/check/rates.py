"""Drop rates that look like mistakes: what each layer's attributes say."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from torch import nn

from fused_dropout._models.check.finding import Finding
from fused_dropout._models.dropout_layers import drop_rates, drops

# From here on a rate is taken for a keep rate. Srivastava et al. 2014 recommend to keep 0.5 to 0.8
# of the hidden units and 0.8 of the inputs (appendix A.4), and their test error rises where less
# than 0.4 is kept (section 7.3). So 0.8 is the smallest common keep rate that no drop rate is near.
SUSPICIOUS = 0.8

# A drop rate's name ends with one of these words, and a keep rate's has one of the others in it.
_LAST_WORDS = ("p", "prob", "probability", "rate", "drop", "dropout")
_KEEP_WORDS = ("keep", "surviv")

# Names under which packages have a drop rate or a keep rate; on a layer that does not read them,
# other names may well be notes, such as "initial_p".
_COMMON_NAMES = (
    "p",
    "rate",
    "prob",
    "probability",
    "drop",
    "dropout",
    "drop_p",
    "drop_prob",
    "drop_rate",
    "drop_path_rate",
    "dropout_p",
    "dropout_prob",
    "dropout_rate",
    "keep_p",
    "keep_prob",
    "keep_rate",
    "survival_prob",
    "survival_rate",
)


def rates_of(module: nn.Module) -> dict[str, float]:
    """The module's own drop rates by attribute, of any value: [0, 1] is not required."""
    rates = {name: getattr(module, name) for name in drop_rates(module)}
    for name, value in _numbers(module):
        if name not in rates and _is_rate_of(module, name):
            rates[name] = value
    return {k: v for k, v in rates.items() if _names_a_rate(k) and _is_read(module, k)}


def rate_of(module: nn.Module) -> float | None:
    """The largest drop rate of a module or, where it has none itself, in it; None: unknown."""
    rates = list(rates_of(module).values())
    if not rates:
        rates = [rate for child in module.modules() for rate in rates_of(child).values()]
    return max(rates, default=None)


def active_dropouts(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules that drop in training mode, by name, without those of rate 0."""
    for name, module in model.named_modules():
        if drops(module) and rate_of(module) != 0:
            yield name, module


def check_rates(model: nn.Module) -> Iterator[Finding]:
    """Findings about the attributes of each layer."""
    for name, module in model.named_modules():
        for attribute, value in rates_of(module).items():
            yield from check_rate(name, f"{attribute}={value:g}", value)
        yield from _check_layers_of_rnn(name, module)
        yield from _check_unread(name, module)


def check_rate(where: str, shown: str, value: float) -> Iterator[Finding]:
    """Findings about one drop rate; ``shown`` is how the message names it."""
    if not 0.0 <= value <= 1.0:  # true for NaN too
        yield Finding(
            "rate-out-of-range",
            where,
            f"{shown} is no probability, so the layer fails or computes nonsense in training.",
            "Set a rate in [0, 1].",
        )
    elif value == 1.0:
        yield Finding(
            "drops-everything",
            where,
            f"{shown} drops everything: in training the output is constant and has no gradient.",
            "Set a rate below 1; to drop nothing, set 0.",
        )
    elif value >= SUSPICIOUS:
        yield Finding(
            "keep-rate-for-p",
            where,
            f"{shown} drops {value:.0%} and keeps {1 - value:.0%}; that looks like a keep rate, as "
            "keep_prob in TensorFlow 1.",
            f"To keep {value:.0%}, set the drop rate {1 - value:.2g}.",
        )


def _check_layers_of_rnn(where: str, module: nn.Module) -> Iterator[Finding]:
    if isinstance(module, nn.RNNBase) and module.num_layers == 1 and module.dropout > 0:
        yield Finding(
            "rnn-dropout-without-effect",
            where,
            f"dropout={module.dropout:g} drops between the layers of a {type(module).__name__}, "
            "and this one has a single layer, so that nothing is dropped.",
            "Put a dropout layer behind it (fused_dropout.nn.LockedDropout for sequences), or set "
            "num_layers above 1.",
        )


def _check_unread(where: str, module: nn.Module) -> Iterator[Finding]:
    if next(module.children(), None) is not None and not isinstance(module, nn.MultiheadAttention):
        return
    if not drops(module) and not isinstance(module, (nn.RNNBase, nn.MultiheadAttention)):
        return
    for name, value in _numbers(module):
        if name not in _COMMON_NAMES or _is_read(module, name):
            continue
        own = " and ".join(rates_of(module)) or "another attribute"
        yield Finding(
            "unread-rate",
            where,
            f"{name}={value:g} was set on a {type(module).__name__}, which never reads it: the "
            f"drop rate is {own}, and stays what it was.",
            f"Set {own}.",
        )


def _numbers(module: nn.Module) -> list[tuple[str, float]]:
    """The module's own attributes that are numbers."""
    return [
        (name, value)
        for name, value in vars(module).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]


def _names_a_rate(name: str) -> bool:
    is_keep_rate = any(word in name for word in _KEEP_WORDS)
    return name.rpartition("_")[2] in _LAST_WORDS and not is_keep_rate


def _is_rate_of(module: nn.Module, name: str) -> bool:
    """Whether a valid value under ``name`` would be a drop rate of this module."""
    if not _names_a_rate(name):
        return False
    twin = object.__new__(type(module))
    vars(twin).update(vars(module))
    vars(twin)[name] = 0.5
    return name in drop_rates(twin)


def _is_read(module: nn.Module, name: str) -> bool:
    """Whether the module's class knows the attribute; True for one without source."""
    cls: type = type(module)
    known = _attributes_in_source(cls)
    return known is None or name in known or hasattr(cls, name)


@lru_cache(maxsize=4096)
def _attributes_in_source(cls: type) -> frozenset[str] | None:
    """Every attribute of ``self``, and every string, in the source of ``cls`` and of its bases.

    None where a class has no source, as in an interactive session.
    """
    names: set[str] = set()
    for base in cls.__mro__[: cls.__mro__.index(nn.Module)]:
        try:
            tree: Any = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError):
            return None
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                names |= {node.attr} if node.value.id == "self" else set()
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)
    return frozenset(names)
