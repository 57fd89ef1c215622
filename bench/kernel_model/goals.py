"""What the kernels must reach in the model.

Counts that are missed fail the report. Shares and times are only shown: no GPU has calibrated them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .cases import Case
from .predict import Prediction

SHARED_BYTES = 99 * 1024  # that a block may have on sm_86, sm_89 and sm_120


@dataclass(frozen=True)
class Goal:
    """For the cases whose names start with `cases`. Counts are the most that may be, 0: no goal."""

    cases: str
    launches: int = 0
    slots: float = 0  # of all launches, for each unit of work
    main_slots: float = 0
    other_slots: float = 0
    share: float = 0  # predicted, at least


# The first that fits counts.
GOALS = (
    Goal("dropconnect forward 128x1024x1024 p=0.5 stored", 3, 480, 205, 275),
    Goal("dropconnect forward 128x1024x1024 p=0.5", 3, 580, 205, 380),
    Goal("dropconnect forward 128x1024x1024 p=0.1", 3, 1850, 205),
    Goal("dropconnect forward 512x4096x4096 p=0.5 stored", 3, 430, 200, 235, share=0.42),
    Goal("dropconnect forward 512x4096x4096 p=0.5", 3, 530, 200, 335, share=0.37),
    Goal("dropconnect forward 512x4096x4096 p=0.1", 3, 1750, 200),
    Goal("dropconnect d_input 128x1024x1024 p=0.5", 2, 570, 220),
    Goal("dropconnect d_input 128x1024x1024 p=0.1", 2, 1900, 220),
    Goal("dropconnect d_input 512x4096x4096 p=0.5", 2, 510, 215, share=0.40),
    Goal("dropconnect d_input 512x4096x4096 p=0.1", 2, 1800, 215),
    Goal("dropconnect d_weight 128x1024x1024 p=0.5", 2, 660, 215),
    Goal("dropconnect d_weight 128x1024x1024 p=0.1", 2, 1700, 215),
    Goal("dropconnect d_weight 512x4096x4096 p=0.5", 2, 520, 215, share=0.40),
    Goal("dropconnect d_weight 512x4096x4096 p=0.1", 2, 1570, 215),
    Goal("dropconnect d_bias", 2, 64, share=0.67),
    Goal("dropout bf16 contiguous p=0.5", 1, 15, share=0.92),
    Goal("dropout bf16 contiguous p=0.1", 1, 23, share=0.92),
    Goal("dropout bf16 residual", 1, 23, share=0.92),
    Goal("dropout bf16 channels_last", 2, 35, share=0.80),
    Goal("dropout bf16 channel masks", 2, 32, share=0.92),
    Goal("bias+gelu+dropout+add bf16 forward", 1, 59, share=0.85),
    Goal("bias+gelu+dropout+add bf16 d_input p=0.1", 1, 71, share=0.85),
    Goal("bias+gelu+dropout+add bf16 d_input and d_bias", 2, 71, share=0.85),
    Goal("gaussian dropout", 1, 67, share=0.60),
    Goal("concrete dropout forward", 1, 97, share=0.45),
    Goal("concrete dropout backward", 2, 109, share=0.45),
    Goal("packed bits p=0.5", 1, 1.6),
    Goal("packed bits p=0.1", 1, 9.3),
)


@dataclass(frozen=True)
class Pass:
    """Cases that a training step runs one after another."""

    name: str
    cases: tuple[str, ...]
    launches: int  # in all, at most
    seconds: float  # predicted, at most


_ALL = ("forward", "d_input", "d_weight")


def _training(shape: str, p: float, bias: str, launches: int, seconds: float) -> Pass:
    products = tuple(f"dropconnect {product} {shape} p={p}" for product in _ALL)
    return Pass(f"dropconnect all {shape} p={p}", (*products, bias), launches, seconds)


PASSES = (
    _training("128x1024x1024", 0.5, "dropconnect d_bias 128x1024 p=0.5", 9, 45e-6),
    _training("512x4096x4096", 0.5, "dropconnect d_bias 512x4096 p=0.5", 9, 2e-3),
    _training("512x4096x4096", 0.1, "dropconnect d_bias 512x4096 p=0.5", 9, 4.5e-3),
)


def goal_of(case: Case) -> Goal:
    return next((goal for goal in GOALS if case.name.startswith(goal.cases)), Goal(""))


def misses(prediction: Prediction) -> list[str]:
    """The goals on counts that a case misses."""
    goal = goal_of(prediction.case)
    main = prediction.main_slots_per_unit
    counted = (
        ("launches", len(prediction.launches), goal.launches),
        ("slots", prediction.slots_per_unit, goal.slots),
        ("slots in the main loop", main, goal.main_slots),
        ("slots beside the main loop", prediction.slots_per_unit - main, goal.other_slots),
        ("bytes of shared memory", prediction.shared_bytes, SHARED_BYTES),
    )
    return [
        f"{prediction.case.name}: {found:.4g} {name}, the goal is at most {most}"
        for name, found, most in counted
        if most and found > most
    ]


@dataclass(frozen=True)
class PassTotal:
    """A pass whose cases have all been predicted."""

    one: Pass
    launches: int
    seconds: float

    def misses(self) -> list[str]:
        if self.launches <= self.one.launches:
            return []
        return [
            f"{self.one.name}: {self.launches} launches, the goal is at most {self.one.launches}"
        ]


def totals(predictions: Sequence[Prediction]) -> list[PassTotal]:
    """Of the passes that are whole among the predictions."""
    found = {prediction.case.name: prediction for prediction in predictions}
    whole: Iterable[Pass] = (one for one in PASSES if found.keys() >= set(one.cases))
    return [
        PassTotal(
            one,
            sum(len(found[name].launches) for name in one.cases),
            sum(found[name].seconds for name in one.cases),
        )
        for one in whole
    ]
