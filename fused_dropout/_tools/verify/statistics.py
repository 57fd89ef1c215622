"""Statistical checks: how far a statistic may be from its mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from statistics import NormalDist

from fused_dropout._tools.verify.checks import Outcome, Target

# All statistical checks together raise a false alarm with this probability, for a random seed.
# With the default seed they are deterministic.
FALSE_ALARM_RATE = 1e-6
STATISTICAL_CHECKS = 5  # three of masks, two of DropConnect


def one_per_device(targets: Sequence[Target]) -> list[Target]:
    """The first target of each device."""
    first = {target.device: target for target in reversed(targets)}
    return [target for target in targets if first[target.device] == target]


def statistical_outcome(z_scores: partial[list[tuple[str, float]]]) -> Outcome:
    """Compare standard-normal scores with the threshold that gives `FALSE_ALARM_RATE` in all."""
    scores = z_scores()
    rate = FALSE_ALARM_RATE / STATISTICAL_CHECKS / len(scores)
    threshold = -NormalDist().inv_cdf(rate / 2)
    outcome = Outcome()
    for case, z in scores:
        outcome.add(abs(z) / threshold, f"{case}: {z:.1f} standard deviations")
    return outcome


def chi_square_z(chi_square: float, degrees: int) -> float:
    """Standard-normal score of a chi-square value (Wilson and Hilferty 1931)."""
    spread = 2.0 / (9.0 * degrees)
    return ((chi_square / degrees) ** (1.0 / 3.0) - (1.0 - spread)) / math.sqrt(spread)
