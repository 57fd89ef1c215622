"""Theorems about dropout, checked with the masks that the package draws.

Each claim gives an error and what is allowed: of rounding or, for the mean of a sample, in standard
errors. Where all 2^n masks of n units are summed, they are gathered from the package's own draws
until none is missing, and weighted by their exact probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

import fused_dropout
from fused_dropout import functional
from fused_dropout._tools.reproduce.checks import Exact
from fused_dropout._tools.reproduce.experiment import (
    Budget,
    Experiment,
    Job,
    Measured,
    Metric,
    Setting,
)
from fused_dropout._tools.reproduce.plots import COLORS, decorate, labels_of
from fused_dropout.reference import keep_rate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fused_dropout._tools.reproduce.results import Results

_UNITS = 6  # of the layers whose masks are all summed
_DRAWS = 2**16  # masks drawn at once, until all 2^6 are found
_TRIES = 16  # after which a mask that is missing makes a claim fail
_RATES = (0.5, 0.25)
_SAMPLES = 2**20
_DEVIATIONS = 5.0  # standard errors allowed: chance exceeds them once in 1.7 million means
_ROUNDING = 1e-12  # allowed in float64, relative to the numbers compared

# Of a seed: the error found and the error allowed.
Claim = Callable[[int], tuple[float, float]]


def geometric_mean(seed: int) -> tuple[float, float]:
    """Weight scaling is the renormalised geometric mean of all thinned networks."""
    x, weight, bias = _normal(seed, (_UNITS,), (5, _UNITS), (5,))
    errors = []
    for p in _RATES:
        masks, chances = _all_masks(seed, p)
        thinned = F.log_softmax((masks * x) @ weight.T + bias, dim=1)
        mean = F.softmax((chances[:, None] * thinned).sum(0), dim=0)
        dropout = fused_dropout.nn.Dropout(p, convention="paper").eval()
        scaled = F.softmax(F.linear(dropout(x), weight, bias), dim=0)
        errors.append((scaled - mean).abs().max().item())
    return max(errors), _ROUNDING


def adaptive_penalty(seed: int) -> tuple[float, float]:
    """The expected squared loss of a linear model is the loss plus p (1 - p) sum x^2 w^2."""
    x, weight, target = _normal(seed, (_UNITS,), (_UNITS,), ())
    errors = []
    for p in _RATES:
        masks, chances = _all_masks(seed, p)
        keep = keep_rate(p)
        expected = (chances * (target - (masks * x) @ weight).square()).sum()
        penalty = keep * (1.0 - keep) * (x.square() * weight.square()).sum()
        predicted = (target - keep * (x @ weight)).square() + penalty
        errors.append(((expected - predicted) / predicted).abs().item())
    return max(errors), _ROUNDING


def tikhonov(seed: int) -> tuple[float, float]:
    """Normal noise on the inputs of a linear model adds variance * |W|^2 to its expected loss."""
    deviation = 0.3
    x, weight, target = _normal(seed, (6,), (4, 6), (4,))
    noise = deviation * fused_dropout.normal_noise((_SAMPLES // 8, 6), seed=seed).double()
    losses = (target - (x + noise) @ weight.T).square().sum(1)
    clean = (target - weight @ x).square().sum()
    predicted = clean + deviation**2 * weight.square().sum()
    return _standard_errors(losses, predicted), _DEVIATIONS


def shared_draws(seed: int) -> tuple[float, float]:
    """DropConnect with one draw per column is dropout of the inputs, per row of the outputs."""
    x, weight = _normal(seed, (16, 12), (10, 12))
    errors = []
    for p in _RATES:
        of_columns = _mask((16, 12), p, seed)[:, None, :].expand(-1, 10, -1)
        connected = torch.einsum("boi,bi->bo", of_columns * weight, x)
        dropped = functional.dropout(x, p, seed=seed)
        errors.append((connected - dropped @ weight.T).abs().max().item())
        of_rows = _mask((16, 10), p, seed)[:, :, None].expand(-1, -1, 12)
        connected = torch.einsum("boi,bi->bo", of_rows * weight, x)
        dropped = functional.dropout(x @ weight.T, p, seed=seed)
        errors.append((connected - dropped).abs().max().item())
    return max(errors), _ROUNDING


def before_or_after(seed: int) -> tuple[float, float]:
    """m * a(v) = a(m * v) where a(0) = 0; not for the logistic function, whose a(0) is 1/2."""
    (v,) = _normal(seed, (4096,))
    mask = fused_dropout.mask((1, 4096), 0.5, seed=seed)[0]
    activations = (torch.relu, torch.tanh, F.gelu, F.silu, lambda v: torch.sigmoid(v) - 0.5)
    errors = [(mask * a(v) - a(mask * v)).abs().max().item() for a in activations]
    if torch.equal(mask * torch.sigmoid(v), torch.sigmoid(mask * v)):
        return math.inf, 0.0
    return max(errors), 0.0


def no_gradient(seed: int) -> tuple[float, float]:
    """What was dropped gets a gradient of exactly 0, what was kept of exactly 1 / q."""
    x, weight, bias = (t.requires_grad_() for t in _normal(seed, (1, 300), (200, 300), (200,)))
    errors = []
    for p in _RATES:
        (gradient,) = torch.autograd.grad(functional.dropout(x, p, seed=seed).sum(), x)
        errors.append((gradient - _mask((1, 300), p, seed)).abs().max().item())
        # One example, so that the gradient of a weight is that of its one connection.
        connections = fused_dropout.mask((200, 300), p, seed=seed)
        output = functional.dropconnect_linear(x, weight, bias, p, seed=seed)
        (gradient,) = torch.autograd.grad(output.sum(), weight)
        errors.append(gradient[~connections].abs().max().item())
        errors.append(float((gradient[connections] == 0).sum()))
    return max(errors), 0.0


def expectation(seed: int) -> tuple[float, float]:
    """The mean over all masks, weighted by their chance, is the network without dropout."""
    (x,) = _normal(seed, (_UNITS,))
    errors = []
    for p, units in ((0.5, 6), (0.25, 6), (0.1, 4)):  # of more units some masks are too rare
        masks, chances = _all_masks(seed, p, units)
        mean = (chances[:, None] * masks * x[:units] / keep_rate(p)).sum(0)
        errors.append((mean - x[:units]).abs().max().item())
    return max(errors), _ROUNDING


def keep_rates(seed: int) -> tuple[float, float]:
    """The share of kept elements is q = round((1 - p) 2^16) / 2^16, within chance."""
    errors = []
    for p in (0.5, 0.1, 0.3, 0.9):
        kept = fused_dropout.mask((1, _SAMPLES), p, seed=seed)[0]
        errors.append(_standard_errors(kept.double(), keep_rate(p)))
    return max(errors), _DEVIATIONS


def matched_moments(seed: int) -> tuple[float, float]:
    """Gaussian dropout has dropout's mean and variance, 1 and p / (1 - p)."""
    errors = []
    ones = torch.ones(_SAMPLES)
    for p in (*_RATES, 0.1):
        for drop in (functional.dropout, functional.gaussian_dropout):
            noise = drop(ones, p, seed=seed).double()
            spread = (1.0 - keep_rate(p)) / keep_rate(p)
            errors.append(_standard_errors(noise, 1.0))
            errors.append(_standard_errors((noise - 1.0).square(), spread))
    return max(errors), _DEVIATIONS


def thinned_network(seed: int) -> tuple[float, float]:
    """A masked network computes what the network does from which those units were removed."""
    x, first, second = _normal(seed, (7, 12), (20, 12), (5, 20))
    errors = []
    for p in _RATES:
        hidden = torch.relu(x[:1] @ first.T)
        output = functional.dropout(hidden, p, seed=seed) @ second.T
        left = fused_dropout.mask((1, 20), p, seed=seed)[0]
        thinned = torch.relu(x[:1] @ first[left].T) @ second[:, left].T / keep_rate(p)
        errors.append((output - thinned).abs().max().item())
    return max(errors), _ROUNDING


def dropconnect_moments(seed: int) -> tuple[float, float]:
    """A DropConnect unit has mean q w v and variance q (1 - q) sum w^2 v^2 (Wan's section 3.2)."""
    weight, v = _normal(seed, (_UNITS,), (_UNITS,))
    errors = []
    for p in _RATES:
        masks, chances = _all_masks(seed, p)
        keep = keep_rate(p)
        units = (masks * weight) @ v
        mean = (chances * units).sum()
        variance = (chances * (units - mean).square()).sum()
        predicted = keep * (1.0 - keep) * (weight.square() * v.square()).sum()
        errors += [(mean - keep * (weight @ v)).abs().item(), (variance - predicted).abs().item()]
    return max(errors), _ROUNDING


def _normal(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """float64 tensors, other ones for each seed."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def _all_masks(seed: int, p: float, units: int = _UNITS) -> tuple[Tensor, Tensor]:
    """All 2^units masks [2^units, units] as they were drawn, and the probability of each."""
    digits = 2 ** torch.arange(units)
    found = torch.empty(0, dtype=torch.int64)
    for offset in range(_TRIES):
        drawn = fused_dropout.mask((_DRAWS, units), p, seed=seed, offset=offset)
        found = torch.cat([found, (drawn * digits).sum(1)]).unique()
        if len(found) == 2**units:
            break
    masks = (found[:, None] & digits > 0).double()
    keep = keep_rate(p)
    kept = masks.sum(1)
    return masks, keep**kept * (1.0 - keep) ** (units - kept)


def _mask(shape: tuple[int, ...], p: float, seed: int) -> Tensor:
    """The mask of dropout for a tensor of this shape, in float64 and with its scale 1 / q."""
    kept = fused_dropout.mask((1, math.prod(shape)), p, seed=seed).view(shape)
    return kept.double() / keep_rate(p)


def _standard_errors(sample: Tensor, expected: float | Tensor) -> float:
    """How far the mean of a sample is from what is expected, in its standard errors."""
    distance = abs(sample.mean().item() - float(expected))
    error = sample.std().item() / math.sqrt(len(sample))
    if error == 0.0:  # all elements are alike, as the squares of dropout's at p = 0.5
        return 0.0 if distance < _ROUNDING else math.inf
    return distance / error


_CLAIMS: dict[str, tuple[str, Claim]] = {
    "geometric_mean": ("weight scaling = geometric mean of all 2^n networks", geometric_mean),
    "adaptive_penalty": ("expected loss = loss + p (1 - p) sum x^2 w^2", adaptive_penalty),
    "tikhonov": ("input noise = Tikhonov regularisation (Bishop)", tikhonov),
    "shared_draws": ("dropout = DropConnect, one draw per row or column", shared_draws),
    "before_or_after": ("m * a(v) = a(m * v) where a(0) = 0", before_or_after),
    "no_gradient": ("no gradient reaches what was dropped", no_gradient),
    "expectation": ("the expectation is preserved", expectation),
    "keep_rates": ("the share kept is the exact keep rate", keep_rates),
    "matched_moments": ("Gaussian dropout has dropout's mean and variance", matched_moments),
    "thinned_network": ("masked network = network without those units", thinned_network),
    "dropconnect_moments": ("DropConnect's mean and variance, summed", dropconnect_moments),
}
SETTINGS = tuple(Setting(name, text, {"claim": name}) for name, (text, _) in _CLAIMS.items())


def run(job: Job) -> Measured:
    """The error of one claim with other numbers for each seed."""
    _, claim = _CLAIMS[job.options["claim"]]
    error, allowed = claim(job.seed)
    return Measured({"error": error, "allowed": allowed})


def draw(figure: Figure, results: Results) -> None:
    """Errors and what is allowed, on a logarithmic axis; 0 is at its left end."""
    axes = figure.subplots()
    smallest = 1e-18
    labels = labels_of(SETTINGS)
    for place, name in enumerate(labels):
        errors = [max(error, smallest) for error in results.values(name, "error")]
        allowed = max(results.values(name, "allowed")[0], smallest)
        axes.plot(errors, [place] * len(errors), "o", color=COLORS[0], label="error found")
        axes.plot([allowed], [place], "|", color=COLORS[3], markersize=18, label="allowed")
    axes.set_xscale("log")
    axes.set_yticks(range(len(labels)), list(labels.values()))
    axes.invert_yaxis()
    axes.set_title("Error of each claim, for every seed; exact zeros at the left end")
    handles, names = axes.get_legend_handles_labels()
    axes.legend(handles[:2], names[:2], frameon=False)
    decorate(axes, "x")


EXPERIMENT = Experiment(
    name="claims",
    title="Theorems about dropout, with the package's masks",
    question="Do the masks have the properties that the papers prove?",
    source="Srivastava et al. 2014; Wan et al. 2013; Bishop 1995; Goodfellow et al. 2016, 7.12",
    data=(),
    settings=SETTINGS,
    metrics=(
        Metric("error", "error; of means, in standard errors", -1),
        Metric("allowed", "allowed", -1),
    ),
    checks=tuple(Exact(setting.label, setting.name, "error", "allowed") for setting in SETTINGS),
    run=run,
    draw=draw,
    quick=Budget(seeds=1, epochs=0, time="3 s"),
    default=Budget(seeds=5, epochs=0, time="10 s"),
    full=Budget(seeds=100, epochs=0, time="3 min"),
    smaller="",
)
