"""Swaps :class:`torch.nn.Linear` for DropConnect layers in an existing model, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from fused_dropout._core import checks
from fused_dropout._core.rates import Convention
from fused_dropout.functional._dropconnect import MaskMode, MaskStorage
from fused_dropout.functional._dropconnect_gaussian import SAMPLES, Activation
from fused_dropout.nn import DropConnectLinear
from fused_dropout.nn._dropconnect import Inference, LinearActivation

LinearFilter = Callable[[str, nn.Linear], bool]
_Layer = TypeVar("_Layer", bound=nn.Module)


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
    carry over. A layer used in several places is replaced by one layer there too. Only the exact
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
        ``module``, or the new layer where ``module`` itself was replaced.

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

    def build(in_features: int, out_features: int, bias: bool) -> DropConnectLinear:
        return DropConnectLinear(
            in_features,
            out_features,
            bias,
            p,
            mask=mask,
            convention=convention,
            mask_storage=mask_storage,
            mask_bias=mask_bias,
            inference=inference,
            activation=activation,
            samples=samples,
            generator=generator,
            seed=seed,
            device="meta",
        )

    build(1, 1, False)  # rejects bad arguments even where there is no layer to replace

    def swap(name: str, layer: nn.Module) -> nn.Module | None:
        if type(layer) is not nn.Linear or "weight" not in layer._parameters:
            return None
        if filter is not None and not filter(name, layer):
            return None
        new = build(layer.in_features, layer.out_features, layer.bias is not None)
        return _take_over(layer, new)

    return _replace(module, swap)


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
        ``module``, or the new layer where ``module`` itself was replaced.

    Raises:
        TypeError: ``module`` is no module.
    """

    def swap(name: str, layer: nn.Module) -> nn.Module | None:
        if type(layer) is not DropConnectLinear:
            return None
        sizes = (layer.in_features, layer.out_features, layer.bias is not None, "meta")
        if layer.activation is None:
            return _take_over(layer, nn.Linear(*sizes))
        return _take_over(layer, LinearActivation(*sizes, activation=layer.activation))

    return _replace(module, swap)


def _take_over(old: nn.Module, new: _Layer) -> _Layer:
    """Gives ``new`` all that a Linear has of ``old``: parameters, training flag, hooks.

    An activation that is a module stays the new layer's own.
    """
    own = new._modules
    for key in vars(nn.Linear(1, 1, device="meta")):
        vars(new)[key] = vars(old)[key]
    new._modules = own
    return new


def _replace(module: nn.Module, swap: Callable[[str, nn.Module], nn.Module | None]) -> nn.Module:
    checks.check_module(module, "module")
    replacements: dict[nn.Module, nn.Module] = {}
    for name, layer in module.named_modules():
        new = swap(name, layer)
        if new is not None:
            replacements[layer] = new
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if child in replacements:
                parent._modules[name] = replacements[child]
    return replacements.get(module, module)
