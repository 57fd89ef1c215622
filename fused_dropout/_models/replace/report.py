"""What a conversion did and did not do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from fused_dropout._models.check.finding import place
from fused_dropout.nn import WeightDrop
from fused_dropout.nn._weight_drop import bare_class_of


class Replaced(NamedTuple):
    """A layer that was replaced.

    Attributes:
        name: qualified name, "" for the model itself; of several the first.
        before: what it was, as ``"torch.nn.Dropout"``.
        after: what it is, as ``"fused_dropout.nn.Dropout"``.
        p: drop probability; None where the layer has none.
        joined_with: the name of the layer with which it does now what both did before: of a LoRA
            adapter; None elsewhere.
    """

    name: str
    before: str
    after: str
    p: float | None
    joined_with: str | None = None

    def __str__(self) -> str:
        joined = "" if self.joined_with is None else f", joined with {self.joined_with}"
        return f"{place(self.name)}: {self.before} -> {self.after}{_shown(self.p)}{joined}"


class Left(NamedTuple):
    """What drops, or was named, and was not replaced.

    Attributes:
        name: qualified name of the module, "" for the model itself; of several the first.
        kind: what it is, as ``"torch.nn.MultiheadAttention"``.
        p: drop probability, None where it is not known.
        reason: why it was left.
    """

    name: str
    kind: str
    p: float | None
    reason: str

    def __str__(self) -> str:
        return f"{place(self.name)}: {self.kind}{_shown(self.p)}: {self.reason}"


class ReplacementReport(NamedTuple):
    """What :func:`fused_dropout.replace` did with a model; ``print`` shows it as a text.

    Attributes:
        replaced: a record (name, before, after, p, joined_with) for each layer that is one of ours
            now, in the order of the model; a layer in several places counts once.
        left: a record (name, kind, p, reason) for each module that drops, or was named, and was not
            replaced.
    """

    replaced: tuple[Replaced, ...]
    left: tuple[Left, ...]

    def __str__(self) -> str:
        lines = [f"{_count(len(self.replaced), 'layer')} replaced", *map(_indented, self.replaced)]
        if self.left:
            lines += [f"{_count(len(self.left), 'place')} left as they are"]
            lines += map(_indented, self.left)
        return "\n".join(lines)


def _indented(record: Replaced | Left) -> str:
    return f"  {record}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _shown(p: float | None) -> str:
    return "" if p is None else f" (p={p:g})"


def rate_of_layer(
    layer: nn.Module, names: Sequence[str] = ("p", "drop_prob", "weight_p")
) -> float | None:
    """The first of these attributes that is a number."""
    values: list[Any] = [getattr(layer, name, None) for name in names]
    numbers = (v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool))
    return next((float(number) for number in numbers), None)


def kind_of(cls: type) -> str:
    """A class by the name under which it is imported: ``torch.nn.Dropout``."""
    bare = bare_class_of(cls)
    if bare is not None:
        return f"{kind_of(WeightDrop)}({kind_of(bare)})"
    module = cls.__module__
    if module.startswith("torch.nn.modules."):
        module = "torch.nn"
    elif module.startswith("fused_dropout.nn._"):
        module = "fused_dropout.nn"
    return (
        cls.__qualname__ if module in ("builtins", "__main__") else f"{module}.{cls.__qualname__}"
    )
