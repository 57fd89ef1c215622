"""Which function makes an instruction executable. One that is not here raises SassError."""

from __future__ import annotations

from collections.abc import Callable

from .block import Block
from .registers import SassError
from .sass import Instruction

Step = Callable[[], None]
Make = Callable[[Block, Instruction], Step]

_table: dict[str, tuple[Make, frozenset[str]]] = {}


def implements(*names: str, flags: set[str] | None = None) -> Callable[[Make], Make]:
    """Puts a function into the table for base opcodes; `flags` are those that it understands."""

    def add(function: Make) -> Make:
        for name in names:
            _table[name] = (function, frozenset(flags or ()))
        return function

    return add


def step_of(block: Block, instruction: Instruction) -> Step:
    """The instruction as a function, which takes effect in the active lanes."""
    function, flags = _table.get(instruction.base, (None, frozenset[str]()))
    unknown = set(instruction.flags) - flags
    if function is None or unknown:
        raise SassError(f"unknown instruction `{instruction.text}`")
    try:
        return function(block, instruction)
    except (SassError, ValueError, IndexError, KeyError) as error:
        raise SassError(f"unknown form of `{instruction.text}`: {error}") from error
