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
    Goal("dropconnect forward 128x1024x1024 p=0.5 stored", 2, 265, 200, 65),
    Goal("dropconnect forward 128x1024x1024 p=0.5", 2, 305, 200, 105),
    Goal("dropconnect forward_and_bits 128x1024x1024 p=0.5", 2, 320, 200, 120),
    Goal("dropconnect forward 128x1024x1024 p=0.1", 2, 1170, 200),
    Goal("dropconnect forward_and_bits 128x1024x1024 p=0.1", 2, 1190, 200),
    Goal("dropconnect forward 512x4096x4096 p=0.5 stored", 1, 226, 200, 28, share=0.42),
    Goal("dropconnect forward 512x4096x4096 p=0.5", 1, 256, 200, 60, share=0.37),
    Goal("dropconnect forward_and_bits 512x4096x4096 p=0.5", 1, 266, 200, 70, share=0.37),
    Goal("dropconnect forward 512x4096x4096 p=0.1", 1, 1130, 200),
    Goal("dropconnect forward_and_bits 512x4096x4096 p=0.1", 1, 1150, 200),
    Goal("dropconnect d_both 128x1024x1024 p=0.5 stored", 2, 258, 210, 50),
    Goal("dropconnect d_both 128x1024x1024 p=0.5", 2, 303, 210, 95),
    Goal("dropconnect d_both 128x1024x1024 p=0.1", 2, 1190, 210),
    Goal("dropconnect d_input 128x1024x1024 p=0.5 stored", 2, 282, 210, 72),
    Goal("dropconnect d_input 128x1024x1024 p=0.5", 2, 327, 210, 118),
    Goal("dropconnect d_input 128x1024x1024 p=0.1", 2, 1200, 210),
    Goal("dropconnect d_weight 128x1024x1024 p=0.5 stored", 2, 315, 210, 105),
    Goal("dropconnect d_weight 128x1024x1024 p=0.5", 2, 360, 210, 150),
    Goal("dropconnect d_weight 128x1024x1024 p=0.1", 2, 1250, 210),
    Goal("dropconnect d_input 512x4096x4096 p=0.5 stored", 1, 242, 210, 32, share=0.40),
    Goal("dropconnect d_input 512x4096x4096 p=0.5", 1, 287, 210, 77, share=0.40),
    Goal("dropconnect d_input 512x4096x4096 p=0.1", 1, 1165, 210),
    Goal("dropconnect d_weight 512x4096x4096 p=0.5 stored", 1, 244, 210, 34, share=0.40),
    Goal("dropconnect d_weight 512x4096x4096 p=0.5", 1, 289, 210, 79, share=0.40),
    Goal("dropconnect d_weight 512x4096x4096 p=0.1", 1, 1190, 210),
    Goal("dropconnect store_masks", 1, 7.2),
    Goal("dropconnect d_bias", 2, 20, share=0.67),
    Goal("dropout bf16 contiguous p=0.5", 1, 11.5, share=0.92),
    Goal("dropout bf16 contiguous p=0.1", 1, 18, share=0.92),
    Goal("dropout bf16 residual", 1, 21, share=0.92),
    Goal("dropout bf16 channels_last p=0.5", 1, 16, share=0.80),
    Goal("dropout bf16 channels_last p=0.1", 1, 23, share=0.80),
    Goal("dropout bf16 channel masks", 1, 19, share=0.92),
    Goal("bias+gelu+dropout+add bf16 forward p=0.5", 1, 33, share=0.85),
    Goal("bias+gelu+dropout+add bf16 forward p=0.1", 1, 39.5, share=0.85),
    Goal("bias+gelu+dropout+add bf16 d_input p=0.1", 1, 42, share=0.85),
    Goal("bias+gelu+dropout+add bf16 d_input and d_bias", 2, 42.5, share=0.67),
    Goal("gaussian dropout", 1, 41, share=0.60),
    Goal("concrete dropout forward", 1, 35, share=0.45),
    Goal("concrete dropout backward", 2, 42, share=0.45),
    Goal("packed bits p=0.5", 1, 0.8),
    Goal("packed bits p=0.1", 1, 6.5),
)


@dataclass(frozen=True)
class Pass:
    """Cases that a training step runs one after another."""

    name: str
    cases: tuple[str, ...]
    launches: int  # in all, at most
    seconds: float  # predicted, at most


# At one digit forward stores the masks as it draws them, at many a launch before it. The large
# gradients are what one launch for both takes, at most; stored masks are read alike at any rate.
_LARGE = "512x4096x4096"
PASSES = (
    Pass(
        "dropconnect training step 128x1024x1024 p=0.5",
        (
            "dropconnect forward_and_bits 128x1024x1024 p=0.5",
            "dropconnect d_both 128x1024x1024 p=0.5 stored",
            "dropconnect d_bias 128x1024 p=0.5",
        ),
        5,
        45e-6,
    ),
    Pass(
        f"dropconnect training step {_LARGE} p=0.5",
        (
            f"dropconnect forward_and_bits {_LARGE} p=0.5",
            f"dropconnect d_input {_LARGE} p=0.5 stored",
            f"dropconnect d_weight {_LARGE} p=0.5 stored",
            "dropconnect d_bias 512x4096 p=0.5",
        ),
        5,
        2e-3,
    ),
    Pass(
        f"dropconnect training step {_LARGE} p=0.1",
        (
            f"dropconnect store_masks {_LARGE} p=0.1",
            f"dropconnect forward {_LARGE} p=0.5 stored",
            f"dropconnect d_input {_LARGE} p=0.5 stored",
            f"dropconnect d_weight {_LARGE} p=0.5 stored",
            "dropconnect d_bias 512x4096 p=0.5",
        ),
        6,
        4.5e-3,
    ),
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
