"""Dropout layers whose mode is not that of the model."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from fused_dropout._models.check.finding import Finding, joined, place
from fused_dropout._models.check.rates import active_dropouts

_MC_DROPOUT = (
    "For Monte Carlo dropout, which does that on purpose, use fused_dropout.mc_dropout: it puts "
    "the modes back at the end."
)


def check_modes(model: nn.Module) -> Iterator[Finding]:
    """Findings about modes: one for each outermost module in another mode than the model."""
    for name, module in _outermost_in_other_mode(model, "", set()):
        dropping = [
            joined(name, inner)
            for inner, layer in active_dropouts(module)
            if layer.training != model.training
        ]
        if not dropping:
            continue
        if dropping == [name]:
            layers = "this dropout layer"
        elif len(dropping) == 1:
            layers = f"the dropout layer {dropping[0]} in it"
        else:
            layers = f"the {len(dropping)} dropout layers in it ({dropping[0]}, ...)"
        if not model.training:
            yield Finding(
                "dropout-on-in-evaluation",
                name,
                f"the model is in evaluation mode, but {layers} will drop (training=True), so that "
                "outputs are random.",
                f"Call eval() on the whole model. {_MC_DROPOUT}",
            )
        elif not _is_frozen(module):
            yield Finding(
                "dropout-off-in-training",
                name,
                f"the model is in training mode, but {layers} will not drop (training=False): "
                "eval() was called on a part and not taken back, or the part was loaded in "
                "evaluation mode.",
                "Call train() on the whole model. To leave the part as it is, freeze it with "
                f"requires_grad_(False), or say in {place(name)} that nothing drops: rate 0.",
            )


def _outermost_in_other_mode(
    module: nn.Module, name: str, seen: set[nn.Module]
) -> Iterator[tuple[str, nn.Module]]:
    seen.add(module)
    for key, child in module.named_children():
        if child in seen:
            continue
        if child.training == module.training:
            yield from _outermost_in_other_mode(child, joined(name, key), seen)
        else:
            yield joined(name, key), child


def _is_frozen(module: nn.Module) -> bool:
    """Whether it has parameters and none is trained; evaluation mode is usual there."""
    parameters = list(module.parameters())
    return bool(parameters) and not any(each.requires_grad for each in parameters)
