"""The functions of one float that CUDA kernels compute for themselves, against float64.

In the emulator the hardware's approximations err by as much as NVIDIA allows them to
(cuda_on_cpu/approximation_models.h), so the bounds hold on every GPU.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cuda_on_cpu.runner import Worker
from support.noise_checks import ulps_from
from torch import Tensor
from torch.nn import functional as F

STEPS = 2**23  # uniform numbers: (k + 1/2) / STEPS
SMALLEST = 2.0**-126


def evaluated(device: Worker, name: str, x: Tensor) -> Tensor:
    numbers = x.float().numpy()
    out = np.full_like(numbers, np.nan)
    assert device.call(f"elementary_{name}", numbers, out, len(numbers)) == 0
    return torch.from_numpy(out)


def some_steps(count: int) -> Tensor:
    """Numbers of uniforms: those around each quarter of them, and some of the others."""
    edges = [k * STEPS // 4 + torch.arange(-2048, 2048) for k in range(5)]
    others = torch.randint(STEPS, (count,), generator=torch.Generator().manual_seed(0))
    steps = torch.cat([*edges, others])
    return steps[(steps >= 0) & (steps < STEPS)]


def dense(low: float, high: float, count: int = 100_000) -> Tensor:
    """float32 numbers as float64: evenly spread, and by powers of 2 down to 2^-126."""
    powers = 2.0 ** torch.linspace(-126, 0, count // 10, dtype=torch.float64)
    spread = torch.linspace(low, high, count, dtype=torch.float64)
    return torch.cat([spread, powers, -powers]).float().double()


def below(x: Tensor) -> Tensor:
    """The normal distribution's weight below x, with all digits where that is tiny."""
    return 0.5 * torch.erfc(-x / math.sqrt(2))


def test_logarithm_and_square_root(device: Worker) -> None:
    u = (some_steps(200_000).double() + 0.5) / STEPS
    log = -u.log()
    assert ulps_from(evaluated(device, "minus_log", u), log) <= 2
    assert ulps_from(evaluated(device, "square_root", log), log.float().double().sqrt()) <= 1


def test_normals(device: Worker) -> None:
    """The contract of common/noise.h: within 4 units in the last place."""
    draw = torch.Generator().manual_seed(1)
    steps = some_steps(200_000)
    other = torch.randint(STEPS, steps.shape, generator=draw)
    pairs = torch.stack([torch.cat([steps, other]), torch.cat([other, steps])], dim=1)
    results = []
    for low in (0, 2**9 - 1):  # bits that do not matter
        words = (pairs * 2**9 + low).numpy().astype(np.uint32)
        out = np.full(words.shape, np.nan, np.float32)
        assert device.call("elementary_normals", words.ravel(), out.ravel(), len(words)) == 0
        results.append(torch.from_numpy(out))
    assert torch.equal(*results)
    a, b = ((pairs.double() + 0.5) / STEPS).unbind(1)
    radius = (-2 * a.log()).sqrt()
    # sin(2 pi b) and cos(2 pi b) by what is left of whole quarters, so that they have all digits.
    quarters = (4 * b).round()
    rest = (b - quarters / 4) * 2 * math.pi
    sine, cosine = rest.sin(), rest.cos()
    odd, far = quarters % 2 == 1, (quarters % 4 == 2) | (quarters % 4 == 3)
    left = (quarters % 4 == 1) | (quarters % 4 == 2)
    truth = torch.stack(
        [
            radius * torch.where(odd, sine, cosine) * (1 - 2.0 * left),
            radius * torch.where(odd, cosine, sine) * (1 - 2.0 * far),
        ],
        dim=1,
    )
    assert ulps_from(results[0], truth) <= 4


def gelu(x: Tensor) -> Tensor:
    return x * below(x)


VALUES = {
    "gelu": gelu,
    "gelu_of_16_bits": gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}
# In units of 2^-23.
ERRORS = {"gelu": 3, "gelu_of_16_bits": 5, "gelu_tanh": 3, "silu": 3}


@pytest.mark.parametrize("name", VALUES)
def test_activations_relative_to_their_argument(device: Worker, name: str) -> None:
    x = dense(-20, 20)
    error = (evaluated(device, name, x).double() - VALUES[name](x)).abs()
    assert (error <= ERRORS[name] * 2.0**-23 * x.abs() + 2.0**-149).all()


@pytest.mark.parametrize("name", ["gelu", "gelu_of_16_bits"])
def test_tiny_values_of_gelu(device: Worker, name: str) -> None:
    """Where torch's own 1 + erf(x) is 0, there are still four digits."""
    x = dense(-13, -2)
    x = x[x < -1]
    truth = gelu(x)
    actual = evaluated(device, name, x).double()
    normal = truth.abs() > 16 * SMALLEST
    assert normal.sum() > 10_000
    assert ((actual - truth).abs() <= 3e-5 * truth.abs())[normal].all()
    assert (evaluated(device, name, dense(-1e4, -14.5)[:100_000]) == 0).all()


@pytest.mark.parametrize("name", VALUES)
def test_slopes(device: Worker, name: str) -> None:
    x = dense(-20, 20).requires_grad_()
    (truth,) = torch.autograd.grad(VALUES[name](x).sum(), x)
    error = (evaluated(device, f"{name}_slope", x.detach()).double() - truth).abs()
    assert (error <= ERRORS[name] * 2.0**-23).all()
    far = torch.tensor([-1e4, -200.0, 200.0, 1e4])
    wanted = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert ((evaluated(device, f"{name}_slope", far) - wanted).abs() <= 2.0**-22).all()


@pytest.mark.parametrize("name", VALUES)
def test_infinities(device: Worker, name: str) -> None:
    """As torch's float64 has them: inf times 0 is no number."""
    x = torch.tensor([-math.inf, math.inf, math.nan])
    value = evaluated(device, name, x)
    assert value[0].isnan() and value[1] == math.inf and value[2].isnan()
    assert evaluated(device, f"{name}_slope", x).isnan().all()
