"""Makes the results of an experiment from its runs."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from fused_dropout._tools.bench.devices import CPU
from fused_dropout._tools.bench.harness import environment
from fused_dropout._tools.reproduce.experiment import Experiment, Measured
from fused_dropout._tools.reproduce.results import NOT_JUDGED, Results, Verdict

_DIGITS_KEPT = 5  # significant ones of a number in the file


def results_of(
    experiment: Experiment,
    runs: Mapping[str, Sequence[Measured]],
    *,
    budget: str,
    data: str,
    seconds: float,
) -> Results:
    """What the runs of an experiment found; `runs` by setting, in the order of the seeds."""
    combined = {} if experiment.combine is None else experiment.combine(runs)
    allowed = asdict(experiment.budget(budget))
    del allowed["time"]  # what was expected; "seconds" is what it took
    document = {
        "experiment": experiment.name,
        "data": data,
        "stand_in": bool(experiment.data) and data != experiment.data[0],
        "budget": {"name": budget, **allowed, "seeds": max(map(len, runs.values()))},
        "seconds": round(seconds, 1),
        **environment(CPU),
        "settings": {
            name: _kept(measured, combined.get(name, {})) for name, measured in runs.items()
        },
        "verdicts": [],
    }
    results = Results(document)
    verdicts = [check.judge(results) for check in experiment.checks]
    if experiment.data and (results.is_stand_in or budget == "quick"):  # theorems need no data
        verdicts = [_without_judgement(verdict, results) for verdict in verdicts]
    document["verdicts"] = [asdict(verdict) for verdict in verdicts]
    return results


def _without_judgement(verdict: Verdict, results: Results) -> Verdict:
    """Claims are about the source's data and a training of some length."""
    reason = "not the source's data" if results.is_stand_in else "too short a run"
    return Verdict(verdict.claim, NOT_JUDGED, f"{reason}: {verdict.reason}")


def _kept(runs: Sequence[Measured], combined: Mapping[str, float]) -> dict[str, Any]:
    return {
        "values": {name: [_rounded(run.values[name]) for run in runs] for name in runs[0].values},
        "curves": {
            name: [[_rounded(value) for value in run.curves[name]] for run in runs]
            for name in runs[0].curves
        },
        "images": {
            name: {
                "shape": list(images.shape),
                "bytes": base64.b85encode(images.contiguous().numpy().tobytes()).decode(),
            }
            for name, images in runs[0].images.items()
        },
        "combined": {name: _rounded(value) for name, value in combined.items()},
    }


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS_KEPT}g}")
