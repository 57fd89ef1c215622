"""Converts the dropout layers of a finished model to those of this package, and back."""

from __future__ import annotations

from typing import Any

from torch import nn

from fused_dropout._core import checks
from fused_dropout._models.replace import become
from fused_dropout._models.replace.become import all_or_nothing, modules_of, original_of
from fused_dropout._models.replace.converters import register_converter
from fused_dropout._models.replace.linear import LinearRates
from fused_dropout._models.replace.plan import DropoutFilter, make_plan
from fused_dropout._models.replace.report import ReplacementReport

__all__ = ["ReplacementReport", "register_converter", "replace", "replacement_report", "restore"]

_REPORT = "_fused_dropout_report"


def replace(
    model: nn.Module,
    *,
    linear: LinearRates | None = None,
    dropout: bool | DropoutFilter = True,
    **options: Any,
) -> nn.Module:
    """Makes the dropout layers of ``model`` those of this package, in place.

    Each layer stays the object that it is, and becomes a layer of ours: its class changes, with the
    same p, mode, block size and so on. So parameters, buffers, hooks, training flags and
    attributes of your own stay, and so does whatever holds the layer: a layer in several places,
    in a list, in another model. Names in the state_dict stay too, and in evaluation the numbers are
    the same to the bit. ``print(fused_dropout.replacement_report(model))`` says what was replaced,
    what was not, and why; :func:`fused_dropout.restore` goes back.

    Replaced are the dropout layers of torch.nn, wherever they are; torchvision's StochasticDepth
    and DropBlock; timm's DropPath and DropBlock2d; Hugging Face's layers named ``...DropPath`` and
    StableDropout; fastai's and PyTorch-NLP's locked dropout; probly's DropConnectLinear; and what
    :func:`fused_dropout.register_converter` was told of. In PEFT's LoRA layers ``lora_A`` drops its
    own input, as :class:`fused_dropout.nn.DropoutLinear`, by the p and in the mode of
    ``lora_dropout``. These packages need not be installed. A layer of exactly such a class is
    replaced: a subclass may mean more, and is reported.

    What no layer holds is reported, and left: the dropout of attention weights, between the layers
    of an LSTM, and calls of functions. Sources of classes are read to find them.

    Args:
        model: changed in place; may itself be a dropout layer.
        linear: drop probabilities of the linear layers to which DropConnect is to come, that are
            no dropout layers; default: none. A float: of all layers of exactly the class
            :class:`torch.nn.Linear`. A dict from names, or patterns with ``*`` and ``?`` as in
            file names (``*`` takes dots too), to p, or to None for layers that stay: a name comes
            before the patterns, of which the first that fits decides. Or a function of the
            qualified name and the layer that returns p or None. The last two reach transformers'
            Conv1D too.
        dropout: whether dropout layers are replaced; or a function of the qualified name and the
            layer that returns it.
        options: further arguments of :class:`fused_dropout.nn.DropConnectLinear`: ``mask``,
            ``convention``, ``mask_storage``, ``mask_bias``, ``inference`` and so on. A Conv1D takes
            the first three.

    Returns:
        ``model``, the same object.

    Raises:
        ValueError: a p out of range, in ``linear`` or on a layer; a key of ``linear`` that fits no
            linear layer; a layer named in ``linear`` that cannot be one of ours, as it is
            quantised, sparse, parametrized, tied or of a subclass; an option without ``linear``.
            Nothing is changed then, nor by any other error.
        TypeError: an argument of the wrong type.

    Example:
        >>> import fused_dropout
        >>> layers = torch.nn.Linear(8, 8), torch.nn.Dropout(0.1), torch.nn.Linear(8, 2)
        >>> model = fused_dropout.replace(torch.nn.Sequential(*layers), linear={"2": 0.5})
        >>> print(fused_dropout.replacement_report(model))
        2 layers replaced
          1: torch.nn.Dropout -> fused_dropout.nn.Dropout (p=0.1)
          2: torch.nn.Linear -> fused_dropout.nn.DropConnectLinear (p=0.5)
    """
    checks.check_module(model, "model")
    if not isinstance(dropout, bool) and not callable(dropout):
        raise TypeError(f"dropout must be a bool or a function, got {dropout!r}")
    if options and linear is None:
        raise ValueError(f"{next(iter(options))} goes with linear, which was not given")
    with all_or_nothing(model):
        plan = make_plan(model, linear, dropout, options)
        for layer, new in plan.replacements:
            become.become(layer, new)
        vars(model)[_REPORT] = plan.report
    return model


def restore(model: nn.Module) -> nn.Module:
    """Makes the layers that :func:`fused_dropout.replace` has replaced what they were, in place.

    The same objects get their old classes back. Parameters keep the values that training has given
    them, hooks that were added stay, and so do attributes that were set in between, a drop rate for
    one. It works on copies of a converted model too, by ``deepcopy`` or ``pickle``. Layers that
    were of this package before stay as they are.

    Args:
        model: changed in place; may itself be such a layer.

    Returns:
        ``model``, the same object.

    Raises:
        TypeError: ``model`` is no module.

    Example:
        >>> import fused_dropout
        >>> model = fused_dropout.replace(torch.nn.Sequential(torch.nn.Dropout(0.1)))
        >>> fused_dropout.restore(model)
        Sequential(
          (0): Dropout(p=0.1, inplace=False)
        )
    """
    checks.check_module(model, "model")
    with all_or_nothing(model):
        for _, layer in list(modules_of(model)):
            if original_of(layer) is not None:
                become.go_back(layer)
        vars(model).pop(_REPORT, None)
    return model


def replacement_report(model: nn.Module) -> ReplacementReport:
    """What :func:`fused_dropout.replace` did with ``model`` when it was last called.

    The report goes with copies of the model, by ``deepcopy`` or ``pickle``.

    Args:
        model: what ``replace`` was called with, and no part of it.

    Returns:
        The report; ``print`` shows it as a text.

    Raises:
        ValueError: ``replace`` was not called with this model, or ``restore`` was since.
        TypeError: ``model`` is no module.

    Example:
        >>> import fused_dropout
        >>> model = torch.nn.LSTM(4, 4, num_layers=2, dropout=0.2)
        >>> print(fused_dropout.replacement_report(fused_dropout.replace(model)).left[0].p)
        0.2
    """
    checks.check_module(model, "model")
    report: ReplacementReport | None = vars(model).get(_REPORT)
    if report is None:
        raise ValueError("model has no report: fused_dropout.replace was not called with it")
    return report
