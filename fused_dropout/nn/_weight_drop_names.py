"""Which parameters a WeightDrop is to drop, and at which rates: every mistake is found here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from fused_dropout._core import checks

# weight_norm, spectral_norm and pruning of torch.nn.utils compute "weight" from a parameter with
# one of these endings in a hook before forward, so that a mask on the parameter would come late.
_ENDINGS_OF_ORIGINALS = tuple(f"_{ending}" for ending in ("g", "v", "orig"))


def checked_rates(
    module: nn.Module, names: str | Sequence[str], p: float | Sequence[float], *, by_column: bool
) -> dict[str, float]:
    """The drop probability of each parameter that ``names`` match, in their order.

    Args:
        module: a module that holds the parameters, directly or in others.
        names, p: as for WeightDrop.
        by_column: whether a parameter needs a second dimension.
    """
    patterns = _patterns(names)
    rates = _rates(p, len(patterns))
    _check_forward(module)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    found: dict[str, float] = {}
    for pattern, rate in zip(patterns, rates, strict=True):
        matching = [name for name in parameters if fnmatchcase(name, pattern)]
        if not matching:
            raise ValueError(_unknown(module, pattern, list(parameters)))
        for name in matching:
            if name in found:
                raise ValueError(f"names must match each parameter once, got {name} twice")
            found[name] = rate
    for name in found:
        _check_parameter(module, name, parameters, by_column)
    return found


def _patterns(names: Any) -> list[str]:
    given = [names] if isinstance(names, str) else names
    if not isinstance(given, Sequence) or not all(isinstance(name, str) for name in given):
        raise TypeError(f"names must be a str or a sequence of them, got {names!r}")
    if not given:
        raise ValueError("names must name at least one parameter, got none")
    return list(given)


def _rates(p: Any, count: int) -> list[float]:
    if isinstance(p, str) or not isinstance(p, Sequence):
        return [checks.check_probability(p)] * count
    if len(p) != count:
        raise ValueError(f"p must be a float or one for each of {count} names, got {len(p)}")
    return [checks.check_probability(rate, f"p[{place}]") for place, rate in enumerate(p)]


def _check_forward(module: nn.Module) -> None:
    """The module's class decides what forward does, and how the module is copied."""
    cls = type(module)
    if cls.__reduce__ is not object.__reduce__ or isinstance(module, torch.jit.ScriptModule):
        raise ValueError(
            f"module must be copied and pickled as modules are, but {cls.__name__} has its own "
            "way, as what torch.compile, torch.fx and torch.jit make; use WeightDrop before them"
        )
    if "forward" in vars(module):
        raise ValueError(
            f"module must have the forward of its class, but this {cls.__name__} has one of its "
            "own, as accelerate sets it; use WeightDrop before that"
        )
    if isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        raise ValueError(
            "module is the out_proj of a MultiheadAttention, which reads its weight and never "
            "calls it; use WeightDrop on the attention, with the name 'out_proj.weight'"
        )


def _unknown(module: nn.Module, pattern: str, names: list[str]) -> str:
    owner, _, last = pattern.rpartition(".")
    try:
        computed = is_parametrized(module.get_submodule(owner), last)
    except AttributeError:
        computed = False
    what = f"names must match parameters of the {type(module).__name__}, got {pattern!r}"
    if computed:
        return f"{what}, which a parametrization computes: a mask on its originals is none on it"
    return f"{what}; it has {', '.join(names) or 'none'}"


def _check_parameter(
    module: nn.Module, name: str, parameters: Mapping[str, Tensor], by_column: bool
) -> None:
    parameter = parameters[name]
    if nn.parameter.is_lazy(parameter):
        raise ValueError(f"{name} is not initialised yet: run the lazy module once first")
    tied = [other for other, it in parameters.items() if it is parameter and other != name]
    if tied:
        raise ValueError(
            f"{name} is tied: it is {' and '.join(tied)} too, and what is masked under one name "
            "would not be under the other; untie them, or wrap the one module inside that is to "
            "use masks"
        )
    _check_not_computed_from(module, name)
    _check_wrapped_once(module, name)
    checks.check_dense(parameter, name)
    checks.check_float_tensor(parameter, name)
    if parameter.dim() < (2 if by_column else 1):
        wanted = "two dimensions for mode='column'" if by_column else "one dimension"
        raise ValueError(f"{name} must have at least {wanted}, got {list(parameter.shape)}")


def _check_not_computed_from(module: nn.Module, name: str) -> None:
    owner_name, _, last = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    stem = next((last.removesuffix(end) for end in _ENDINGS_OF_ORIGINALS if last.endswith(end)), "")
    is_original = stem != "" and isinstance(vars(owner).get(stem), Tensor)
    if is_original or "parametrizations" in owner_name.split("."):
        raise ValueError(
            f"{name} is what a weight is computed from, by a parametrization, weight_norm, "
            "spectral_norm or pruning; take that off first"
        )


def _check_wrapped_once(module: nn.Module, name: str) -> None:
    """No module inside ``module`` masks the parameter already."""
    inner, rest = module, name
    while "." in rest:
        child, _, rest = rest.partition(".")
        inner = inner.get_submodule(child)
        if rest in getattr(inner, "weight_drop", ()):
            raise ValueError(
                f"{name} is masked already, by the {type(inner).__name__} "
                f"{name.removesuffix(f'.{rest}')}"
            )
