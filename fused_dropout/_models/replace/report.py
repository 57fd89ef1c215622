"""What a conversion did and did not do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from fused_dropout._models.check.finding import place


class Replaced(NamedTuple):
    """A layer that was replaced.

    Attributes:
        name: qualified name, "" for the model itself; of several the first.
        before: what it was, as ``"torch.nn.Dropout"``.
        after: what it is, as ``"fused_dropout.nn.Dropout"``.
        p: drop probability; None where the layer has none.
    """

    name: str
    before: str
    after: str
    p: float | None

    def __str__(self) -> str:
        return f"{place(self.name)}: {self.before} -> {self.after}{_shown(self.p)}"


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
        replaced: a record (name, before, after, p) for each layer that is one of ours now, in the
            order of the model; a layer in several places counts once.
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
    weight_drop = next((base for base in cls.__bases__ if base.__name__ == "WeightDrop"), None)
    if weight_drop is not None and len(cls.__bases__) == 2:  # a class made for the module
        return f"{kind_of(weight_drop)}({kind_of(cls.__bases__[1])})"
    module = cls.__module__
    if module.startswith("torch.nn.modules."):
        module = "torch.nn"
    elif module.startswith("fused_dropout.nn._"):
        module = "fused_dropout.nn"
    return (
        cls.__qualname__ if module in ("builtins", "__main__") else f"{module}.{cls.__qualname__}"
    )
