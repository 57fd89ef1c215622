"""LoRA adapters of peft: ``lora_B(lora_A(lora_dropout(x)))``, whose A drops its input itself.

So no dropped copy of x and no mask is kept for backward: adapters of q, k and v share x. Both
layers go on being what holds for them now: p and the mode are those of ``lora_dropout``, which
code that sets the rates of all dropout layers finds as before; the weight is that of ``lora_A``.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor, nn

from fused_dropout import nn as ours
from fused_dropout._models.replace.become import has_hooks, modules_of, share_members
from fused_dropout._models.replace.linear import obstacle
from fused_dropout.functional import dropout_linear

# Classes whose forward, for adapters of no variant, is the one above: of plain linear layers and of
# those that bitsandbytes has quantised. Classes of convolutions and embeddings have another one.
_LAYERS = {
    ("peft.tuners.lora.layer", "Linear"),
    ("peft.tuners.lora.bnb", "Linear4bit"),
    ("peft.tuners.lora.bnb", "Linear8bitLt"),
}


class LoraDropout(ours.Dropout):
    """The dropout of an adapter whose A drops the input: it returns its input, and holds p.

    Args:
        p: drop probability in [0, 1].
        linear: the ``lora_A`` that drops by it. If that is no LoraDropoutLinear any more, because
            ``restore`` was called with a part of the model, this is a Dropout.
    """

    def __init__(self, p: float, linear: nn.Module) -> None:
        super().__init__(p)
        self.partner = (linear,)  # in a tuple, so that it is no module in this one

    def forward(self, input: Tensor) -> Tensor:
        if isinstance(self.partner[0], LoraDropoutLinear):
            return input
        return super().forward(input)


class LoraDropoutLinear(ours.DropoutLinear):
    """The A of an adapter, which drops its input by the p and in the mode of ``lora_dropout``.

    Args:
        layer: the linear layer, whose parameters it gets.
        dropout: the ``lora_dropout``. If that is no LoraDropout any more, it drops itself, and this
            is a plain linear layer.
    """

    drops_in_training = False  # whether this drops is the mode of the other one

    def __init__(self, layer: nn.Linear, dropout: nn.Module) -> None:
        has_bias = layer.bias is not None
        nn.Linear.__init__(self, layer.in_features, layer.out_features, has_bias, device="meta")
        share_members(self, layer)
        self.partner: tuple[Any] = (dropout,)

    @property
    def p(self) -> float:
        """The drop probability; to set it sets that of ``lora_dropout``."""
        p: float = self.partner[0].p
        return p

    @p.setter
    def p(self, p: float) -> None:
        self.partner[0].p = p

    def forward(self, input: Tensor) -> Tensor:
        dropout = self.partner[0]
        drops = isinstance(dropout, LoraDropout) and dropout.training
        return dropout_linear(input, self.weight, self.bias, self.p, drops)


def adapters(model: nn.Module) -> dict[int, tuple[nn.Dropout, nn.Linear]]:
    """By the id of a ``lora_dropout``, it and the ``lora_A`` that can drop for it."""
    holders = Counter(
        id(child) for _, module in modules_of(model) for child in _children(module).values()
    )
    found = {}
    for _, layer in modules_of(model):
        if (type(layer).__module__, type(layer).__name__) not in _LAYERS:
            continue
        if "forward" in vars(layer):
            continue
        inner = _children(layer)
        dropouts, linears = (_children(inner.get(key)) for key in ("lora_dropout", "lora_A"))
        for name in dropouts.keys() & linears.keys():
            pair: Any = dropouts[name], linears[name]
            alone = all(holders[id(each)] == 1 for each in pair)
            if alone and not _is_variant(layer, name) and _can_be_joined(*pair):
                found[id(pair[0])] = pair
    return found


def partner_of(layer: nn.Module) -> nn.Module | None:
    """The other layer of an adapter."""
    if isinstance(layer, (LoraDropout, LoraDropoutLinear)):
        return layer.partner[0]
    return None


def _children(module: nn.Module | None) -> dict[str, nn.Module]:
    children = {} if module is None else vars(module).get("_modules")
    if not isinstance(children, dict):  # as in modules_of
        return {}
    return {name: child for name, child in children.items() if child is not None}


def _is_variant(layer: Any, name: str) -> bool:
    """DoRA and so on, which call A in ways of their own; before peft 0.16 DoRA alone."""
    uses_dora = getattr(layer, "use_dora", {}).get(name, False)
    return name in getattr(layer, "lora_variant", {}) or bool(uses_dora)


def _can_be_joined(dropout: nn.Module, linear: nn.Module) -> bool:
    """Whether nothing but the adapter sees what is between them."""
    if type(dropout) is not nn.Dropout or dropout.inplace or not 0 < dropout.p <= 1:
        return False
    if type(linear) is not nn.Linear or obstacle(linear, None) is not None:
        return False
    return not (has_hooks(dropout) or has_hooks(linear) or "forward" in vars(dropout))
