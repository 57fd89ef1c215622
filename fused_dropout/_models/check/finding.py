"""What a check reports."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """One mistake with dropout in a model, found by :func:`fused_dropout.check`.

    ``str`` of it is a text that says all of the following.

    Attributes:
        mistake: short name that stays the same, such as ``"dropout-before-batchnorm"``.
        where: qualified name of the module, "" for the model itself.
        why: what was found, and what is wrong with it.
        instead: what to do.
    """

    mistake: str
    where: str
    why: str
    instead: str

    def __str__(self) -> str:
        return f"{place(self.where)}: {self.mistake}: {self.why} {self.instead}"


def place(where: str) -> str:
    """A qualified name for a message; that of the model itself is empty."""
    return where or "the model itself"


def joined(outer: str, inner: str) -> str:
    """The qualified name of a module in a module."""
    return f"{outer}.{inner}" if outer and inner else outer or inner
