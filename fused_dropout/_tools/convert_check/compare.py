"""The checks: drop rates of every replaced layer, outputs in evaluation, the way back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fused_dropout import replace, replacement_report, restore
from fused_dropout._core.private_torch import flatten
from fused_dropout._models.check.unchanged import unchanged
from fused_dropout._models.replace.report import Replaced, ReplacementReport
from fused_dropout._tools.convert_check.probes import Dropped, Probe, bare, in_errors, probe_of
from fused_dropout._tools.convert_check.random_calls import unexplained_calls

SIGMAS = 5.0
#: How often a check of a correct rate fails by chance.
FALSE_ALARMS = math.erfc(SIGMAS / math.sqrt(2))
_SCALE_TOLERANCE = 1e-3  # masks have rates in steps of 2^-16


class Site(NamedTuple):
    """A replaced layer, and its drop rate before and after.

    Attributes:
        layer: its record in the report.
        before: measured drop rate of what it was; None where that did not drop.
        after: measured drop rate of what it is; None: its class is not known here.
        sigmas: the larger distance, from p and from ``before``, in standard errors.
        comparisons: how many distances there were.
        problem: "" where all is well.
    """

    layer: Replaced
    before: float | None
    after: float | None
    sigmas: float | None
    comparisons: int
    problem: str


class Outcome(NamedTuple):
    """All that was found.

    Attributes:
        report: that of ``fused_dropout.replace``.
        sites: one for each replaced layer.
        problems: of the model as a whole.
        unexplained: modules that drew random numbers and of which the report says nothing, by name,
            with the operators; None without inputs.
    """

    report: ReplacementReport
    sites: list[Site]
    problems: list[str]
    unexplained: dict[str, str] | None

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.problems and not any(site.problem for site in self.sites)


def compare(
    model: nn.Module, inputs: tuple[Sequence[Any], Mapping[str, Any]] | None, linear: Any
) -> Outcome:
    """Converts the model, measures, and converts it back. ``inputs``: args and kwargs."""
    names = list(model.state_dict())
    outputs = [] if inputs is None else [_evaluated(model, *inputs)]
    replace(model, linear=linear)
    report = replacement_report(model)
    layers = {record.name: model.get_submodule(record.name) for record in report.replaced}
    probes = {name: probe_of(layer) for name, layer in layers.items()}
    kept_p = {name for name, probe in probes.items() if probe is not None and probe.drops_at_p}
    after = {name: _run(probes[name], layer) for name, layer in layers.items()}
    unexplained = None
    if inputs is not None:
        outputs.append(_evaluated(model, *inputs))
        explained = [*layers, *(left.name for left in report.left)]
        unexplained = unexplained_calls(model, *inputs, explained=explained)
    restore(model)
    before = {
        record.name: None
        if record.before.endswith(("nn.Linear", ".Conv1D")) or not _runs_before(probes[record.name])
        else _run(probes[record.name], layers[record.name])
        for record in report.replaced
    }
    if inputs is not None:
        outputs.append(_evaluated(model, *inputs))
    sites = [
        _site(each, before[each.name], after[each.name], each.name in kept_p)
        for each in report.replaced
    ]
    return Outcome(report, sites, _problems(model, names, outputs), unexplained)


def _runs_before(probe: Probe | None) -> bool:
    return probe is not None and probe.runs_before


def _run(probe: Any, layer: nn.Module) -> Dropped | None:
    return None if probe is None else probe.run(bare(layer))


def _site(record: Replaced, before: Dropped | None, after: Dropped | None, kept_p: bool) -> Site:
    if after is None:
        return Site(record, None, None, None, 0, "")
    distances, problem = [], ""
    p = record.p if after.p is None else after.p
    if kept_p and p is not None:
        distances += [after.distance_from(p)] * after.candidates
    if before is not None:
        distances.append(_between(before, after))
        if not math.isclose(before.scale, after.scale, rel_tol=_SCALE_TOLERANCE):
            both_nothing = math.isnan(before.scale) and math.isnan(after.scale)
            # DropBlock's scale depends on what was dropped.
            if kept_p and not both_nothing:
                problem = f"kept values are times {after.scale:.4g}, before {before.scale:.4g}"
    sigmas = max(distances, default=0.0)
    if not sigmas <= SIGMAS:
        problem = f"{sigmas:.1f} standard errors off"
    rate_before = None if before is None else before.rate
    return Site(record, rate_before, after.rate, sigmas, len(distances), problem)


def _between(one: Dropped, other: Dropped) -> float:
    variance = sum(float(each.shares.var()) / len(each.shares) for each in (one, other))
    return in_errors(one.rate - other.rate, math.sqrt(variance))


def _evaluated(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Tensor]:
    with unchanged(model, training=False):
        torch.manual_seed(0)
        outputs = model(*args, **kwargs)
    return [leaf for leaf in flatten(outputs)[0] if isinstance(leaf, Tensor)]


def _problems(model: nn.Module, names: list[str], outputs: list[list[Tensor]]) -> list[str]:
    problems = []
    if list(model.state_dict()) != names:
        problems.append("after restore the names in the state_dict are not those of before")
    for when, found in zip(("after replace", "after restore"), outputs[1:], strict=False):
        same = len(found) == len(outputs[0]) and all(map(_equal, found, outputs[0]))
        if not same:
            problems.append(f"{when} the outputs in evaluation are not those of before")
    return problems


def _equal(one: Tensor, other: Tensor) -> bool:
    """Bit for bit, where NaNs are equal."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
