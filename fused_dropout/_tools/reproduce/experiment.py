"""What an experiment is made of.

A file of experiments/ ends with one `Experiment`: the settings that are compared, a function that
runs one setting with one seed, what its source claims and printed, and a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fused_dropout._tools.reproduce.checks import Check
from fused_dropout._tools.reproduce.data import Images
from fused_dropout._tools.reproduce.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Budget:
    """How much an experiment may take: `--quick`, the default, or `--full`."""

    seeds: int
    epochs: int
    examples: int | None = None  # to train on; None: all that there are
    time: str = ""  # that it takes on 2 cores, in words
    options: Mapping[str, Any] = field(default_factory=dict)  # what else `run` reads


@dataclass(frozen=True)
class Setting:
    """One of the things that an experiment compares: one row of its table."""

    name: str  # in the JSON file
    label: str  # in the table and the picture
    options: Mapping[str, Any] = field(default_factory=dict)  # what `run` reads
    seeds: int | None = None  # at most, unless the user asks for a number; None: the budget's


@dataclass(frozen=True)
class Metric:
    """One column of an experiment's table: a number that every run gives."""

    name: str  # in the JSON file
    label: str  # with its unit, in the table
    digits: int = 3  # after the decimal point


@dataclass
class Job:
    """One setting with one seed: what `run` gets."""

    options: Mapping[str, Any]  # the setting's
    seed: int
    budget: Budget
    report: Callable[[float], None]  # takes the share of the work that is done, in [0, 1]
    data: Images | None  # None where the experiment needs none


@dataclass
class Measured:
    """What one run found."""

    values: dict[str, float]
    curves: dict[str, list[float]] = field(default_factory=dict)
    images: dict[str, Tensor] = field(default_factory=dict)  # uint8 [N, height, width]
    arrays: dict[str, Tensor] = field(default_factory=dict)  # for `combine`; not kept


# By setting and metric: numbers that all seeds of a setting have together.
Combined = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Experiment:
    """One name of `fused-dropout reproduce`."""

    name: str
    title: str
    question: str  # what it answers: a sentence or two
    source: str  # author, title, year, and table, figure or section
    data: tuple[str, ...]  # names of data.py: the source's own first; () for none
    settings: tuple[Setting, ...]
    metrics: tuple[Metric, ...]
    run: Callable[[Job], Measured]
    draw: Callable[[Figure, Results], None]
    quick: Budget
    default: Budget
    full: Budget
    smaller: str  # what is smaller in the default than in the source
    chosen: str = ""  # how recipe and rules were chosen, where results were seen before
    checks: tuple[Check, ...] = ()
    # Settings and metrics with what the source printed for them, on the source's own data.
    published: Mapping[tuple[str, str], str] = field(default_factory=dict)
    combine: Callable[[Mapping[str, Sequence[Measured]]], Combined] | None = None
    figure_size: tuple[float, float] = (11.0, 4.2)  # inches

    def budget(self, name: str) -> Budget:
        """The budget called "quick", "default" or "full"."""
        return {"quick": self.quick, "default": self.default, "full": self.full}[name]
