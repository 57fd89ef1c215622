"""Swaps :class:`torch.nn.Linear` for DropConnect layers in an existing model, and back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fused_dropout._core import checks
from fused_dropout._core.rates import Convention
from fused_dropout._models.replace.become import (
    all_or_nothing,
    become,
    forget_original,
    modules_of,
    share_members,
)
from fused_dropout._models.replace.linear import obstacle
from fused_dropout._models.replace.plan import make_plan
from fused_dropout.functional._dropconnect import MaskMode, MaskStorage
from fused_dropout.functional._dropconnect_gaussian import SAMPLES, Activation
from fused_dropout.nn import DropConnectLinear
from fused_dropout.nn._dropconnect import Inference, LinearActivation

LinearFilter = Callable[[str, nn.Linear], bool]


def to_dropconnect(
    module: nn.Module,
    p: float = 0.5,
    *,
    mask: MaskMode | int = "example",
    convention: Convention = "inverted",
    mask_storage: MaskStorage = "auto",
    mask_bias: bool = True,
    inference: Inference = "mean",
    activation: Activation | None = None,
    samples: int = SAMPLES,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    filter: LinearFilter | None = None,
) -> nn.Module:
    """Replaces the :class:`torch.nn.Linear` layers of a model by DropConnect layers.

    The new layers hold the same Parameter objects, so optimizers, tied weights, requires_grad flags
    and state_dict keys stay valid and nothing is copied; the training flag, device, dtype and hooks
    carry over, since each layer stays the same object. Only the exact
    type :class:`torch.nn.Linear` is replaced: a subclass, or a layer whose weight is computed
    (weight_norm, parametrizations), means more than its weight and is left alone.

    Layers with an ``activation``, which ``inference="gaussian"`` and ``"relu_exact"`` need, apply
    it themselves. Where the model applies the same one after the layer, it does so twice: to ReLU
    that makes no difference, any other has to be taken out of the model.

    With ``convention="paper"``, beware of code that reads ``layer.weight`` instead of calling the
    layer, such as the evaluation fast path of :class:`torch.nn.TransformerEncoderLayer`: it misses
    the keep rate that this convention multiplies by. The default convention needs no such factor.

    Args:
        module: changed in place; may itself be a :class:`torch.nn.Linear`.
        p: drop probability in [0, 1].
        mask: the rows of the input that share a mask: ``"row"`` (none), ``"example"`` (those of one
            item of the first dimension), ``"batch"`` (all), or an int of at least 1: that many
            consecutive rows.
        convention: ``"inverted"`` divides by the keep rate in training; ``"paper"`` multiplies by
            it in evaluation instead.
        mask_storage: how backward gets the masks: ``"regenerate"`` draws them again, ``"packed"``
            keeps 1 bit per connection, ``"auto"`` takes the faster of the two.
        mask_bias: whether the biases are masked, and scaled, too.
        inference, activation, samples, generator, seed: what the layers compute in evaluation; see
            :class:`fused_dropout.nn.DropConnectLinear`.
        filter: called with the qualified name ("" for ``module`` itself) and the layer; only layers
            for which it returns True are replaced. Default: all are.

    Returns:
        ``module``, the same object.

    Raises:
        ValueError: p, mask, convention, mask_storage, inference, activation or samples out of
            range; both generator and seed; nothing is changed then.
        TypeError: ``module`` is no module, or an argument of the wrong type; nothing is changed
            then.

    Example:
        >>> import fused_dropout
        >>> fused_dropout.to_dropconnect(torch.nn.Sequential(torch.nn.Linear(8, 4)), p=0.3)
        Sequential(
          (0): DropConnectLinear(in_features=8, out_features=4, bias=True, p=0.3, mask='example')
        )
    """

    checks.check_module(module, "module")
    p = checks.check_probability(p)

    def rate(name: str, layer: nn.Module) -> float | None:
        if not isinstance(layer, nn.Linear) or obstacle(layer, places=None) is not None:
            return None
        return p if filter is None or filter(name, layer) else None

    options = {
        "mask": mask,
        "convention": convention,
        "mask_storage": mask_storage,
        "mask_bias": mask_bias,
        "inference": inference,
        "activation": activation,
        "samples": samples,
        "generator": generator,
        "seed": seed,
    }
    with all_or_nothing(module):
        for layer, new in make_plan(module, rate, False, options, tied=True).replacements:
            become(layer, new)
    return module


def to_linear(module: nn.Module) -> nn.Module:
    """Replaces the DropConnect layers of a model by :class:`torch.nn.Linear`.

    The inverse of :func:`fused_dropout.to_dropconnect`: the parameters are shared. A layer with
    ``convention="paper"`` computes q (W x + b) in evaluation (q is the keep rate), which a Linear
    on the same parameters does not: such a model changes its outputs; and so does one whose layers
    have an ``inference`` other than ``"mean"``. A layer with an activation becomes a Linear that
    applies it.

    Args:
        module: changed in place; may itself be a :class:`fused_dropout.nn.DropConnectLinear`.

    Returns:
        ``module``, the same object.

    Raises:
        TypeError: ``module`` is no module.
    """

    checks.check_module(module, "module")
    with all_or_nothing(module):
        for _, layer in list(modules_of(module)):
            if type(layer) is DropConnectLinear:
                _become_linear(layer)
    return module


def _become_linear(layer: DropConnectLinear) -> None:
    activation = layer.activation
    has_bias = layer.bias is not None
    sizes = (layer.in_features, layer.out_features, has_bias, "meta")
    new = (
        nn.Linear(*sizes) if activation is None else LinearActivation(*sizes, activation=activation)
    )
    for attribute in vars(DropConnectLinear(1, 1, device="meta")).keys() - vars(new).keys():
        vars(layer).pop(attribute, None)
    share_members(new, layer)
    become(layer, new)
    forget_original(layer)
