"""The theorems of `fused-dropout reproduce claims` fail where the package breaks them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fused_dropout
from fused_dropout import functional
from fused_dropout._tools.reproduce.experiments import claims

mask, normal_noise = fused_dropout.mask, fused_dropout.normal_noise
dropout, gaussian_dropout = functional.dropout, functional.gaussian_dropout
Fault = tuple[object, str, Callable[..., Any]]


def first_column_kept(*args: Any, **kwargs: Any) -> Tensor:
    kept = mask(*args, **kwargs)
    kept[..., 0] = True
    return kept


def paper_scaling_forgotten(module: object, x: Tensor) -> Tensor:
    return x


FAULTS: dict[str, Fault] = {
    "geometric_mean": (fused_dropout.nn.Dropout, "forward", paper_scaling_forgotten),
    "adaptive_penalty": (fused_dropout, "mask", first_column_kept),
    "tikhonov": (fused_dropout, "normal_noise", lambda *a, **k: 1.1 * normal_noise(*a, **k)),
    "shared_draws": (functional, "dropout", lambda x, p, seed: dropout(x, p, seed=seed + 1)),
    "before_or_after": (fused_dropout, "mask", lambda *a, **k: 0.5 * mask(*a, **k)),
    "no_gradient": (functional, "dropout", lambda x, p, seed: dropout(x, p, seed=seed) + 1e-9 * x),
    "expectation": (fused_dropout, "mask", first_column_kept),
    "keep_rates": (fused_dropout, "mask", lambda shape, p, **k: mask(shape, p + 0.005, **k)),
    "matched_moments": (
        functional,
        "gaussian_dropout",
        lambda x, p, seed: gaussian_dropout(x, 0.97 * p, seed=seed),
    ),
    "thinned_network": (functional, "dropout", lambda x, p, seed: dropout(x, p, seed=seed + 1)),
    "dropconnect_moments": (fused_dropout, "mask", first_column_kept),
}
CLAIMS = [setting.name for setting in claims.SETTINGS]


def error_and_allowed(name: str) -> tuple[float, float]:
    measured = claims.run(
        claims.Job({"claim": name}, 3, claims.EXPERIMENT.quick, lambda share: None, None)
    )
    return measured.values["error"], measured.values["allowed"]


@pytest.mark.parametrize("name", CLAIMS)
def test_it_holds(name: str) -> None:
    error, allowed = error_and_allowed(name)
    assert error <= allowed


@pytest.mark.parametrize("name", CLAIMS)
def test_a_fault_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*FAULTS[name])
    error, allowed = error_and_allowed(name)
    assert not error <= allowed


def test_a_mask_that_never_comes_makes_the_means_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    masks, chances = claims._all_masks(0, 0.5, 4)
    assert masks.shape == (16, 4) and chances.sum().item() == pytest.approx(1.0, abs=1e-15)
    monkeypatch.setattr(fused_dropout, "mask", lambda shape, p, **k: torch.ones(shape).bool())
    masks, chances = claims._all_masks(0, 0.5, 4)
    assert masks.shape == (1, 4) and chances.sum().item() < 1.0
