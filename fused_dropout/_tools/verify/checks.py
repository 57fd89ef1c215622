"""What a check is, what comes of it, and how it is run."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from fused_dropout._core import extension


@dataclass(frozen=True)
class Target:
    """One implementation to check: an instruction set of the CPU, or CUDA."""

    name: str
    device: str

    def active(self) -> AbstractContextManager[object]:
        """Ops run by this implementation inside the returned context."""
        return extension.use_isa(self.name) if self.device == "cpu" else nullcontext()


@dataclass(frozen=True)
class Settings:
    """What the checks need to know."""

    quick: bool
    seed: int
    targets: tuple[Target, ...]


@dataclass
class Outcome:
    """Worst error over the cases of one check, as a ratio to its bound; 0 is exact."""

    cases: int = 0
    worst: float = 0.0
    note: str = ""

    def add(self, ratio: float, case: object) -> None:
        """Count one case; the worst one that fails is remembered in the note."""
        self.cases += 1
        ratio = math.inf if math.isnan(ratio) else ratio
        if ratio > self.worst:
            self.worst = ratio
            self.note = str(case) if ratio > 1 else ""

    def add_exact(self, equal: bool, case: object) -> None:
        """Count one case that must agree in every bit."""
        self.add(0.0 if equal else math.inf, case)


@dataclass(frozen=True)
class Check:
    """One row of the table before it is run."""

    op: str
    what: str
    isa: str
    dtype: str
    run: Callable[[], Outcome]


@dataclass(frozen=True)
class Row:
    """One row of the table: `ok` is None for what was not checked."""

    op: str
    what: str
    isa: str
    dtype: str
    cases: int
    worst: float
    ok: bool | None
    note: str = ""


def run_check(check: Check) -> Row:
    """Run one check; whatever it raises becomes a failed row that shows it."""
    try:
        outcome = check.run()
    except Exception as error:
        message = " ".join(str(error).split())
        outcome = Outcome(0, math.inf, f"{type(error).__name__}: {message}")
    ok = outcome.worst <= 1 and outcome.cases > 0
    note = outcome.note or ("" if ok else "no case ran")
    return Row(check.op, check.what, check.isa, check.dtype, outcome.cases, outcome.worst, ok, note)
