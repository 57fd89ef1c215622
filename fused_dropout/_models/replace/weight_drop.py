"""Wrappers that drop weights of a module: AWD-LSTM's, fastai's and PyTorch-NLP's.

They keep the weight under a second name, ``weight_hh_l0_raw``, and set the first one anew in every
forward. Ours needs no second name: the converted layer is the bare module with masks, so that its
state_dict is that of the bare module. A name ``rnn.module.weight_hh_l0_raw`` becomes
``rnn.weight_hh_l0``.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn

from fused_dropout._models.replace.become import HOOKS, has_hooks
from fused_dropout.nn import WeightDrop

_RAW = "_raw"
_HOOKED = "the module in it has hooks of its own"


def _awd_lstm(layer: Any) -> nn.Module | str:
    mode = "row" if layer.variational else "connection"
    if has_hooks(layer.module):
        return _HOOKED
    return _converted(layer.module, layer.module, layer.weights, layer.dropout, mode)


def _fastai(layer: Any) -> nn.Module | str:
    if has_hooks(layer.module):
        return _HOOKED
    return _converted(layer.module, layer, layer.layer_names, layer.weight_p, "connection")


def _torchnlp_wrapper(layer: Any) -> nn.Module | str:
    return "it holds no module: none of its parameters is in the model"


def _torchnlp(layer: Any) -> nn.Module | str:
    """WeightDropLSTM and so on, whose settings are in the closure of its forward alone."""
    found = inspect.getclosurevars(vars(layer)["forward"]).nonlocals
    return _converted(layer, layer, found["weights"], found["dropout"], "connection")


def _converted(
    module: Any, owner: nn.Module, names: Sequence[str] | str, p: float, mode: str
) -> nn.Module | str:
    """A twin of ``module`` with the weights of ``owner`` under their own names, and with masks."""
    names = [names] if isinstance(names, str) else list(names)
    raw = {name: owner._parameters.get(name + _RAW) for name in names}
    missing = [name for name, weight in raw.items() if weight is None]
    if missing:
        return f"it has no parameter {missing[0]}{_RAW}"
    new: nn.Module = WeightDrop(_bare_twin(module, raw), names, p, mode)
    return new


def _bare_twin(module: Any, raw: dict[str, Any]) -> nn.Module:
    """A module of torch's class that shares everything with ``module`` but what a wrapper added."""
    twin: Any = object.__new__(_bare_class(type(module)))
    vars(twin).update(vars(module))
    vars(twin).update({name: value for name, value in vars(nn.Module()).items() if name in HOOKS})
    for name in ("flatten_parameters", "forward", *raw):
        vars(twin).pop(name, None)
    members = {k: v for k, v in module._parameters.items() if k.removesuffix(_RAW) not in raw}
    vars(twin)["_parameters"] = members
    if isinstance(twin, nn.RNNBase):  # it has a list of them too, which setattr keeps up to date
        vars(twin).update({k: list(v) for k, v in vars(twin).items() if type(v) is list})
    for name, weight in raw.items():
        setattr(twin, name, weight)
    if isinstance(twin, nn.RNNBase):  # in the order of a new one
        names = {id(weight): name for name, weight in members.items()}
        ordered = [weight for weights in twin.all_weights for weight in weights]
        members.update({names[id(weight)]: members.pop(names[id(weight)]) for weight in ordered})
    made: nn.Module = twin
    return made


def _bare_class(cls: type[nn.Module]) -> type[nn.Module]:
    """torch's class under one of PyTorch-NLP's."""
    return cls.__mro__[1] if cls.__module__.partition(".")[0] == "torchnlp" else cls


#: Converters of layers whose forward is set on the object, by their own package.
WITH_OWN_FORWARD = (_torchnlp, _torchnlp_wrapper)

CONVERTERS = {
    ("weight_drop", "WeightDrop"): _awd_lstm,
    ("fastai", "WeightDropout"): _fastai,
    ("torchnlp", "WeightDrop"): _torchnlp_wrapper,
    ("torchnlp", "WeightDropLSTM"): _torchnlp,
    ("torchnlp", "WeightDropGRU"): _torchnlp,
    ("torchnlp", "WeightDropLinear"): _torchnlp,
}
