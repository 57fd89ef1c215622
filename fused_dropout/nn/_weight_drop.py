"""DropConnect of a module's own weights, whatever the module: LSTM, convolution, attention, ...

In training, ``forward`` runs on a twin of the module: an object of the same class that shares
everything with it but the masked weights. So the module itself is never changed: nothing has to be
put back after an exception, threads do not meet, and whatever ``forward`` leaves behind for
backward, such as a checkpoint of one of its parts, goes on seeing the weights that it ran with.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Collection, Sequence
from functools import cache, wraps
from typing import Any, Literal, get_args

from torch import Tensor, nn

from fused_dropout import functional
from fused_dropout._core import checks
from fused_dropout._core.private_torch import FLAT_WEIGHTS, flat_weights_with
from fused_dropout.nn._weight_drop_names import checked_rates

WeightDropMode = Literal["connection", "row", "column"]
WEIGHT_DROP_MODES = get_args(WeightDropMode)


class WeightDrop(nn.Module):
    """Drops weights of any module in training: DropConnect for LSTM, convolution, attention, ...

    Returns ``module`` itself, whose class is now a subclass of its own class and of WeightDrop. Its
    parameters, their names and its state_dict stay what they were, so that optimizers and
    checkpoints of the bare module fit, in both directions; it can be copied, pickled and saved. In
    training, each call of it draws one mask for each of the named parameters and uses the masked
    weights throughout, an LSTM in all steps; in evaluation it is the bare module, bit for bit.

    Replaces the ``WeightDrop`` of AWD-LSTM and PyTorch-NLP, and fastai's ``WeightDropout``. Masks
    come from torch's generators, as those of ``torch.nn.Dropout``: ``torch.manual_seed`` repeats
    them, and activation checkpoints draw the same ones again.

    ``module.weight_drop``, a dict, has the drop probability of each parameter and may be changed;
    ``module.weight_p`` is that of all of them, which
    :class:`fused_dropout.schedules.LinearSchedule` moves, or None where they differ.

    Wrap the module whose ``forward`` reads the weight. Of ``torch.nn.MultiheadAttention`` that is
    the attention for ``"out_proj.weight"`` too: it reads this weight and does not call its
    out_proj. A weight that is read elsewhere, such as by ``F.linear(x, layer.weight)`` in a parent,
    has no mask there.

    Sources: Wan et al., "Regularization of Neural Networks using DropConnect", ICML 2013; Merity,
    Keskar and Socher, "Regularizing and Optimizing LSTM Language Models", ICLR 2018, section 2;
    of columns, Gal and Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent
    Neural Networks", NeurIPS 2016.

    Args:
        module: changed in place; the parameters may have any number of dimensions.
        names: of the parameters, as in ``named_parameters``; patterns as in :mod:`fnmatch`, such as
            ``"weight_hh_*"`` or ``"*.weight"``.
        p: drop probability in [0, 1], or one for each of ``names``.
        mode: what is dropped together. ``"connection"``: each weight on its own, by
            :func:`fused_dropout.functional.mask_weight`. ``"row"``: all weights of an entry of the
            first dimension, which in torch.nn is an output unit, a gate of an LSTM or a filter
            (``variational=True`` of AWD-LSTM). ``"column"``: all of an entry of the second one, an
            input unit; of ``weight_hh`` that is one hidden unit for all gates in all steps, of
            which dropout's mask is locked.

    Shape:
        input and output: those of ``module``.

    Raises:
        ValueError: an unknown name (the message lists those that exist); a parameter that is tied,
            computed (parametrizations, weight_norm, spectral_norm, pruning), not initialised yet,
            or matched by two names; a second WeightDrop; p or mode out of range; the out_proj of an
            attention. Nothing is changed then.
        RuntimeError: a parameter of integers, or not dense. Nothing is changed then.
        TypeError: an argument of the wrong type. Nothing is changed then.

    Example:
        >>> from fused_dropout import nn
        >>> lstm = nn.WeightDrop(torch.nn.LSTM(4, 8), "weight_hh_*", p=0.5)
        >>> lstm
        LSTM(4, 8, weight_drop={'weight_hh_l0': 0.5})
        >>> list(lstm.state_dict()) == list(torch.nn.LSTM(4, 8).state_dict())
        True
        >>> output, (h, c) = lstm(torch.ones(3, 2, 4))
        >>> WeightDrop = nn.WeightDrop
        >>> WeightDrop.remove(lstm)
        LSTM(4, 8)
    """

    drops_in_training = True  # for fused_dropout.mc_dropout

    weight_drop: dict[str, float]
    weight_drop_mode: WeightDropMode

    def __new__(
        cls,
        module: nn.Module,
        names: str | Sequence[str],
        p: float | Sequence[float] = 0.5,
        mode: WeightDropMode = "connection",
    ) -> Any:
        checks.check_module(module, "module")
        checks.check_choice(mode, "mode", WEIGHT_DROP_MODES)
        if isinstance(module, WeightDrop):
            raise ValueError(
                f"module must not be a WeightDrop already: this {type(module).__name__} drops "
                f"{', '.join(module.weight_drop)}; name all parameters in one call, with a "
                "sequence for p, or use WeightDrop.remove first"
            )
        rates = checked_rates(module, names, p, by_column=mode == "column")
        bare: Any = type(module)
        module.__class__ = _class_on(bare)
        vars(module).update(weight_drop=rates, weight_drop_mode=mode)
        return module

    def __init__(self, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        """Nothing is left to do: ``self`` is the module, which was made before."""
        if module is not self:
            name = type(self).__name__
            raise TypeError(f"a {name} with WeightDrop is made by WeightDrop on a {name}")

    @staticmethod
    def remove(module: nn.Module) -> nn.Module:
        """Makes the module of a WeightDrop bare again, in place, with the parameters it has now.

        Args:
            module: a WeightDrop; modules inside it are left as they are.

        Returns:
            ``module``, of the class that it had before.

        Raises:
            TypeError: ``module`` is no WeightDrop.
            ValueError: it has got another class since, as by a parametrization or fully_shard.
        """
        if not isinstance(module, WeightDrop):
            raise TypeError(f"module must be a WeightDrop, got {type(module).__name__}")
        bare = bare_class_of(type(module))
        if bare is None:
            raise ValueError(
                f"module was made a {type(module).__name__} after it was made a WeightDrop; take "
                "that back first"
            )
        found: Any = module
        found.__class__ = bare
        del vars(module)["weight_drop"], vars(module)["weight_drop_mode"]
        return module

    @property
    def weight_p(self) -> float | None:
        """The drop probability of all named parameters; None where they differ."""
        rates = set(self.weight_drop.values())
        return rates.pop() if len(rates) == 1 else None

    @weight_p.setter
    def weight_p(self, p: float) -> None:
        self.weight_drop = dict.fromkeys(self.weight_drop, checks.check_probability(p, "weight_p"))

    def extra_repr(self) -> str:
        shown = [super().extra_repr(), f"weight_drop={self.weight_drop}"]
        if self.weight_drop_mode != "connection":
            shown.append(f"mode={self.weight_drop_mode!r}")
        return ", ".join(part for part in shown if part)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickles name the bare class: that of a WeightDrop is in no module."""
        bare = bare_class_of(type(self))
        made = super().__reduce_ex__(max(int(protocol), 2))
        if bare is None or made[:2] != (copyreg.__newobj__, (type(self),)):  # type: ignore[attr-defined]
            return made
        return (_new_on, (bare,), *made[2:])


# ---- the class of a module with masks ------------------------------------------------------------


@cache
def _class_on(bare: type[nn.Module]) -> type[nn.Module]:
    """The subclass of ``bare`` and WeightDrop.

    It bears the names of ``bare``, by which torch.fx tells layers of torch.nn, and others which
    blocks to place together (accelerate, FSDP) and which model a checkpoint is of (transformers).
    """

    @wraps(bare.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not (self.training and self.weight_drop):
            return bare.forward(self, *args, **kwargs)
        return _forward_of_twin(self, bare.forward, args, kwargs)

    attributes = {
        "__doc__": bare.__doc__,
        "__module__": bare.__module__,
        "__qualname__": bare.__qualname__,
        "__new__": lambda cls, *args, **kwargs: bare.__new__(cls),  # as torch and pickle call it
        "forward": forward,
    }
    return type(bare.__name__, (WeightDrop, bare), attributes)


def bare_class_of(cls: Any) -> type[nn.Module] | None:
    """The class that ``cls`` was made on; None where others have derived from it since."""
    bare: Any = cls.__bases__[-1]
    return bare if WeightDrop in cls.__bases__ and cls is _class_on(bare) else None


def _new_on(bare: Any) -> nn.Module:
    """An object whose state is still to be set, for pickle."""
    cls = _class_on(bare)
    return cls.__new__(cls)


# ---- a twin with masked weights ------------------------------------------------------------------


def _forward_of_twin(
    module: WeightDrop, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    masked = {}
    for name, p in module.weight_drop.items():
        masked[name] = _masked(_tensor_of(module, name), p, module.weight_drop_mode)
    copies: list[_Copy] = []
    twin = _twin_of(module, masked, copies, weight_drop={})  # its calls of itself drop no more
    try:
        return forward(twin, *args, **kwargs)
    finally:
        for copy in copies:
            _carry_over(*copy)


def masked_weights(module: WeightDrop) -> dict[str, Tensor]:
    """The weights that one call of ``module`` in training mode would see, by their names."""

    def read(twin: nn.Module) -> dict[str, Tensor]:
        return {name: _tensor_of(twin, name) for name in module.weight_drop}

    found: dict[str, Tensor] = _forward_of_twin(module, read, (), {})
    return found


def _tensor_of(module: nn.Module, name: str) -> Tensor:
    owner, _, last = name.rpartition(".")
    weight: Tensor = getattr(module.get_submodule(owner), last)
    return weight


def _masked(weight: Tensor, p: float, mode: WeightDropMode) -> Tensor:
    if mode == "connection":
        return functional.mask_weight(weight, p)
    own = 0 if mode == "row" else 1
    others = tuple(dim for dim in range(weight.dim()) if dim != own)
    return functional.dropout(weight, p, broadcast_dims=others)


# A dict of a module, its copy in the twin, and what the copy held at first.
_Copy = tuple[dict[str, Any], dict[str, Any], dict[str, Any]]


def _twin_of(
    module: nn.Module, masked: dict[str, Tensor], copies: list[_Copy], **changed: Any
) -> nn.Module:
    """The twin of ``module`` with these tensors for parameters, and twins of what is on the way.

    Args:
        module: left as it is.
        masked: tensors by the names of the parameters that they stand for.
        copies: gets the dicts that the twins have copies of.
        changed: attributes that the twin has instead of the module's.
    """
    parameters: dict[str, Any] = dict(module._parameters)
    modules = dict(module._modules)
    own: dict[str, Tensor] = {}
    inner: dict[str, dict[str, Tensor]] = {}
    for name, weight in masked.items():
        child, dot, rest = name.partition(".")
        if dot:
            inner.setdefault(child, {})[rest] = weight
        else:
            own[name] = weight
    attributes = {**vars(module), "_parameters": parameters, "_modules": modules, **changed}
    for name, weight in own.items():  # a replica of DataParallel has attributes for parameters
        (parameters if name in parameters else attributes)[name] = weight
    if isinstance(module, nn.RNNBase):
        attributes.update(flat_weights_with(module, own))
    for child, tensors in inner.items():
        modules[child] = _twin_of(_without_masks_on(modules[child], tensors), tensors, copies)
    twin = object.__new__(type(module))
    vars(twin).update(attributes)
    copies += [
        (module._parameters, parameters, dict(parameters)),
        (module._modules, modules, dict(modules)),
        (vars(module), vars(twin), attributes),
    ]
    return twin


def _without_masks_on(module: Any, names: Collection[str]) -> nn.Module:
    """``module``, if it does not mask any of these parameters itself."""
    if isinstance(module, WeightDrop) and not module.weight_drop.keys().isdisjoint(names):
        raise RuntimeError(
            f"{' and '.join(names)} of the {type(module).__name__} would be masked twice, by it "
            "and by the WeightDrop around it; use WeightDrop.remove on one of the two"
        )
    found: nn.Module = module
    return found


def _carry_over(original: dict[str, Any], copy: dict[str, Any], before: dict[str, Any]) -> None:
    """What forward has set or deleted in the twin is so in the module too."""
    for key, value in copy.items():
        if key not in FLAT_WEIGHTS and (key not in before or before[key] is not value):
            original[key] = value
    for key in before.keys() - copy.keys():
        original.pop(key, None)
