"""What the tests of the ops on continuous noise share: shapes, layouts, statistics.

The statistics use fixed seeds, so a check passes always or never. Before the seed was chosen each
would have failed with the chance stated here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fused_dropout.reference import _noise as reference
from support.tensors import permuted, with_gaps

# Edges of a Philox call (4 elements), an access (8), a block (128) and a task (8192).
SIZES = (1, 3, 4, 5, 7, 8, 9, 127, 128, 129, 1000, 8191, 8193, 20_001)

SIGMAS = 5.0  # 6e-7: how often a normal number is further from its mean
KOLMOGOROV = 2.7  # 9e-7: how often sqrt(n) sup |F_n - F| is larger


def layouts(tensor: Tensor) -> dict[str, Tensor]:
    """A [N, C, H, W] tensor in other strides, with the same numbers in the same places."""
    offset = torch.cat([tensor.new_zeros(1), tensor.flatten()])[1:].view(tensor.shape)
    return {
        "channels_last": tensor.contiguous(memory_format=torch.channels_last),
        "reversed": permuted(tensor, 3, 2, 1, 0),
        "gaps": with_gaps(tensor),
        "misaligned": offset,
    }


def assert_rounded(actual: Tensor, truth: Tensor, scale: Tensor, ulps: float = 8) -> None:
    """`actual` is the float64 `truth` but for rounding.

    Arithmetic in float32 (float64 for float64) may be wrong by `ulps` units of `scale`, the size of
    the numbers that were added up; then the result is rounded once to its dtype.
    """
    computed = torch.float64 if actual.dtype == torch.float64 else torch.float32
    smallest = torch.finfo(actual.dtype).smallest_normal * torch.finfo(actual.dtype).eps
    error = (actual.double() - truth).abs()
    bound = torch.finfo(actual.dtype).eps * truth.abs() / 2 + smallest
    bound = bound + ulps * torch.finfo(computed).eps * scale.abs()
    if computed == actual.dtype:  # the last rounding is one of the arithmetic's
        bound = bound + torch.finfo(computed).eps * truth.abs()
    worst = (error - bound).max().item() if actual.numel() else 0.0
    assert worst <= 0, f"off by {worst:.3g} more than rounding explains"


def check_mean(samples: Tensor, mean: float, deviation: float) -> None:
    """The mean of independent samples of that deviation; false alarm 6e-7."""
    bound = SIGMAS * deviation / math.sqrt(samples.numel())
    assert abs(samples.double().mean().item() - mean) <= bound


def check_normal(z: Tensor) -> None:
    """Moments 1 to 4 of N(0, 1), and Kolmogorov and Smirnov's distance; false alarm 4e-6."""
    z = z.double().flatten()
    # The deviation of z^k is sqrt(E z^2k - (E z^k)^2).
    check_mean(z, 0, 1)
    check_mean(z**2, 1, math.sqrt(2))
    check_mean(z**3, 0, math.sqrt(15))
    check_mean(z**4, 3, math.sqrt(96))
    check_distribution(z, lambda x: 0.5 * torch.erfc(-x / math.sqrt(2)))


def check_distribution(samples: Tensor, cdf: Callable[[Tensor], Tensor]) -> None:
    """sqrt(n) sup |F_n - F| (Kolmogorov and Smirnov); false alarm 9e-7."""
    x = samples.double().flatten().sort().values
    n = len(x)
    steps = torch.arange(n, dtype=torch.float64, device=x.device) / n
    expected = cdf(x)
    distance = torch.maximum((expected - steps).abs().max(), (steps + 1 / n - expected).abs().max())
    assert distance.item() * math.sqrt(n) <= KOLMOGOROV


def check_independent(a: Tensor, b: Tensor) -> None:
    """Two samples of mean 0 and variance 1: no correlation, nor of their squares; false alarm 2e-6.

    The squares are taken from their own mean and deviation.
    """
    a, b = a.double().flatten(), b.double().flatten()
    check_mean(a * b, 0, 1)
    squares = [(x**2 - (x**2).mean()) / (x**2).std() for x in (a, b)]
    check_mean(squares[0] * squares[1], 0, 1)


def check_neighbours(samples: Tensor) -> None:
    """A sequence of mean 0 and variance 1: no correlation at distances within and across calls."""
    x = samples.flatten()
    for distance in (1, 2, 3, 4, 5, 8, 128, 4096):
        check_independent(x[:-distance], x[distance:])


def ulps_from(actual: Tensor, truth: Tensor) -> float:
    """The largest distance of float32 numbers from float64 ones, in units in the last place."""
    exact = truth.cpu().numpy()
    unit = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return float((np.abs(actual.cpu().double().numpy() - exact) / unit).max())


# (logit p, temperature): exponents that floats, and doubles, cannot hold.
EXTREME_RATES = (
    (-200.0, 0.1),
    (-80.0, 0.1),
    (0.0, 1e-4),
    (0.3, 1e4),
    (80.0, 0.1),
    (100.0, 0.1),
    (100.0, 1.0),
    (100.0, 2.0),
    (100.0, 1e4),
    (800.0, 1.0),
)


def assert_concrete_extremes(
    ours: Sequence[Tensor],
    input: Tensor,
    rate: float,
    temperature: float,
    grad: Tensor,
    **random: int,
) -> None:
    """`ours` are output, d_input and d_logit of concrete dropout at one of EXTREME_RATES.

    They are finite, and right where the dtype has such numbers. An exponent's rounding is a
    relative error of its exponential; what is too small for a float may be any small number.
    """
    eps = torch.finfo(input.dtype).eps
    error = 16 * eps * (abs(rate) + 2) * (1 + 1 / temperature)
    u = reference.uniform_noise(input.shape, device=input.device, **random)
    exponent = (rate + u.log() - (1 - u).log()) / temperature
    # keep / (1 - p) = (1 + e^logit p) / (1 + e^exponent)
    logit_p, zero = exponent.new_tensor(rate), exponent.new_tensor(0.0)
    factor = (torch.logaddexp(logit_p, zero) - torch.logaddexp(exponent, zero)).exp()
    slope = factor * (logit_p.sigmoid() - exponent.sigmoid() / temperature)
    smallest = 1e-34
    assert all(actual.isfinite().all() for actual in ours[:2])
    if factor.max() > torch.finfo(input.dtype).max / 100:
        return  # too large a result for the dtype, and more so a sum of them
    for actual, operand in zip(ours, (input, grad), strict=False):
        expected = operand.double() * factor
        assert ((actual.double() - expected).abs() <= error * expected.abs() + smallest).all()
    terms = input.double() * grad.double() * factor
    d_logit = (input.double() * grad.double() * slope).sum()
    bound = error * (terms.abs().sum() * (1 + 1 / temperature)) + smallest
    assert (ours[2].double() - d_logit).abs() <= bound
