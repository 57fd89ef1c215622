"""Judges what an experiment found against what its source claims.

A claim is about the mean over all seeds that there could be; a few of them were run. So it is
contradicted only if the seeds are unlikely under it: a one-sided t test at the level `LEVEL`. A
claim that is just true is called contradicted once in 1 / LEVEL runs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from fused_dropout._tools.reproduce.results import (
    CONTRADICTED,
    HOLDS,
    NOT_JUDGED,
    OPEN,
    Results,
    Verdict,
)

LEVEL = 0.01


class Check(Protocol):
    """A claim."""

    def judge(self, results: Results) -> Verdict:
        """What the results say of it."""


@dataclass(frozen=True)
class Ordering:
    """The mean of a metric is lower (or higher) in one setting than in another.

    Seeds are paired: both settings start from the same weights and see the same batches.
    """

    claim: str
    metric: str
    better: str
    worse: str
    higher_is_better: bool = False

    def judge(self, results: Results) -> Verdict:
        """By a paired t test over the seeds that both settings have."""
        pairs = zip(
            results.values(self.better, self.metric),
            results.values(self.worse, self.metric),
            strict=True,
        )
        sign = 1.0 if self.higher_is_better else -1.0
        gains = [sign * (better - worse) for better, worse in pairs]
        return _of_gains(self.claim, gains, "difference in the claimed direction")


@dataclass(frozen=True)
class _Bound:
    claim: str
    metric: str
    setting: str
    bound: float

    _SIGN: ClassVar[float]
    _SIDE: ClassVar[str]

    def judge(self, results: Results) -> Verdict:
        """By a t test over the seeds."""
        values = results.values(self.setting, self.metric)
        gains = [self._SIGN * (value - self.bound) for value in values]
        return _of_gains(self.claim, gains, f"distance {self._SIDE} {self.bound:g}")


class AtLeast(_Bound):
    """The mean of a metric is at least `bound` in a setting."""

    _SIGN, _SIDE = 1.0, "above"


class AtMost(_Bound):
    """The mean of a metric is at most `bound` in a setting."""

    _SIGN, _SIDE = -1.0, "below"


@dataclass(frozen=True)
class Between:
    """The mean of a metric is in the range that the source printed."""

    claim: str
    metric: str
    setting: str
    low: float
    high: float

    def judge(self, results: Results) -> Verdict:
        """In the range it holds; outside, a t test says whether that may be chance."""
        values = results.values(self.setting, self.metric)
        if not _can_be_judged(values):
            return Verdict(self.claim, NOT_JUDGED, f"{len(values)} seed(s)")
        mean = statistics.fmean(values)
        reason = f"{mean:.4f} ± {statistics.stdev(values):.4f} over {len(values)} seeds"
        if self.low <= mean <= self.high:
            return Verdict(self.claim, HOLDS, reason)
        bound = self.low if mean < self.low else self.high
        sign = 1.0 if mean < self.low else -1.0
        probability = probability_of_mean([sign * (bound - value) for value in values])
        state = CONTRADICTED if probability < LEVEL else OPEN
        return Verdict(self.claim, state, f"{reason}, p = {probability:.2g}")


@dataclass(frozen=True)
class Exact:
    """A theorem: in every run of a setting `metric` is at most the metric `bound`."""

    claim: str
    setting: str
    metric: str
    bound: str

    def judge(self, results: Results) -> Verdict:
        """Without statistics: one run above its bound contradicts it."""
        errors = results.values(self.setting, self.metric)
        bounds = results.values(self.setting, self.bound)
        # Written so that NaN contradicts.
        holds = all(error <= bound for error, bound in zip(errors, bounds, strict=True))
        reason = f"largest error {max(errors):.1e}, allowed {min(bounds):.1e}"
        return Verdict(self.claim, HOLDS if holds else CONTRADICTED, reason)


def _can_be_judged(values: Sequence[float]) -> bool:
    """A test needs two seeds, and runs that did not diverge."""
    return len(values) > 1 and all(map(math.isfinite, values))


def _of_gains(claim: str, gains: Sequence[float], what: str) -> Verdict:
    """Whether the mean of which these are a sample is above 0."""
    mean = statistics.fmean(gains)
    if not _can_be_judged(gains):
        return Verdict(claim, NOT_JUDGED, f"{what} {mean:+.4f} in {len(gains)} seed(s)")
    probability = probability_of_mean(gains)
    reason = (
        f"{what} {mean:+.4f} ± {statistics.stdev(gains):.4f} over {len(gains)} seeds, "
        f"p = {probability:.2g}"
    )
    if probability < LEVEL:
        return Verdict(claim, HOLDS, reason)
    return Verdict(claim, CONTRADICTED if probability > 1.0 - LEVEL else OPEN, reason)


def probability_of_mean(gains: Sequence[float]) -> float:
    """The p-value of a one-sided t test: small if the mean behind the gains is above 0."""
    from scipy.stats import t as student

    error = statistics.stdev(gains) / math.sqrt(len(gains))
    mean = statistics.fmean(gains)
    if error == 0.0:
        return 0.5 if mean == 0.0 else float(mean < 0.0)
    return float(student.sf(mean / error, len(gains) - 1))
