"""Statistics of dropout's masks as its results show them, with fixed seeds.

Each z is standard normal where the mask is right. Fewer than 400 are looked at, and beyond 6 lies
one in 5e8: with seeds picked at random, a right mask would fail with a probability below 1e-6.
"""

from __future__ import annotations

import math

import pytest
import torch
from support.tensors import random_tensor
from torch import Tensor

from fused_dropout import functional, reference

Z = 6.0


def z_of_rate(kept: Tensor, q: float) -> float:
    count = kept.numel()
    return abs(float(kept.sum()) - count * q) / math.sqrt(count * q * (1 - q))


def z_of_agreement(a: Tensor, b: Tensor, q: float) -> float:
    """How much more or less often two masks agree than independent ones."""
    return z_of_rate(a == b, q * q + (1 - q) * (1 - q))


def kept_by(name: str, p: float, seed: int) -> Tensor:
    """The mask of an op [N, C, H, W] seen through its output, all positions."""
    shape = (64, 96, 4, 6)
    function = getattr(functional, name)
    ones = torch.full(shape, 2.0)
    output = function(ones, p, True, seed=seed)
    return output == output.max()


@pytest.mark.parametrize("p", [0.5, 0.25, 0.1, 0.9])
@pytest.mark.parametrize("name", ["dropout", "alpha_dropout"])
def test_rate_and_independence_of_elements(name: str, p: float, place: torch.device) -> None:
    q = reference.keep_rate(p)
    kept, other = kept_by(name, p, 1), kept_by(name, p, 2)
    assert z_of_rate(kept, q) < Z
    assert z_of_agreement(kept, other, q) < Z, "seeds"
    for dim in range(4):
        a, b = kept.narrow(dim, 0, kept.size(dim) - 1), kept.narrow(dim, 1, kept.size(dim) - 1)
        assert z_of_agreement(a, b, q) < Z, f"neighbours along dimension {dim}"
    flat = kept.flatten()
    for distance in (2, 31, 32, 64, 127, 128, 129):
        assert z_of_agreement(flat[distance:], flat[:-distance], q) < Z, distance


@pytest.mark.parametrize("p", [0.5, 0.25, 0.1, 0.9])
@pytest.mark.parametrize("name", ["dropout2d", "feature_alpha_dropout"])
def test_rate_and_independence_of_channels(name: str, p: float, place: torch.device) -> None:
    q = reference.keep_rate(p)
    everywhere, others = kept_by(name, p, 1), kept_by(name, p, 2)
    kept, other = everywhere[:, :, 0, 0], others[:, :, 0, 0]
    assert torch.equal(everywhere, kept[:, :, None, None].expand_as(everywhere))
    assert z_of_rate(kept, q) < Z
    assert z_of_agreement(kept, other, q) < Z, "seeds"
    assert z_of_agreement(kept[1:], kept[:-1], q) < Z, "examples"
    assert z_of_agreement(kept[:, 1:], kept[:, :-1], q) < Z, "channels"


@pytest.mark.parametrize("p", [0.5, 0.1])
def test_rate_and_independence_of_locked_dropout(p: float, place: torch.device) -> None:
    q = reference.keep_rate(p)
    kept = functional.locked_dropout(torch.ones(3, 64, 96), p, seed=1)[0] != 0
    assert z_of_rate(kept, q) < Z
    assert z_of_agreement(kept[1:], kept[:-1], q) < Z
    assert z_of_agreement(kept[:, 1:], kept[:, :-1], q) < Z


def test_mean_and_variance_of_alpha_dropout(place: torch.device) -> None:
    """Standard normal in, mean 0 and variance 1 out; the deviations are within Z of theirs."""
    count = 1_000_000
    input = random_tensor((count,), torch.float64)
    for p in (0.1, 0.5, 0.9):
        output = functional.alpha_dropout(input, p, True, seed=4)
        assert abs(float(output.mean())) < Z / math.sqrt(count)
        fourth = float(((output - output.mean()) ** 4).mean())
        assert abs(float(output.var()) - 1) < Z * math.sqrt((fourth - 1) / count)
