"""Continuous noise, and the ops on it, of every instruction set against the reference."""

from __future__ import annotations

import math

import pytest
import torch
from support.noise_checks import assert_rounded, ulps_from
from support.tensors import DTYPES, assert_same_bits, computing_type, random_tensors
from torch import Tensor

from fused_dropout import reference
from simd_on_any_cpu.kernels import OUT, Kernels, Random, filled

RANDOM = {"seed": 2**40 + 9, "offset": 77}
STATE = Random(RANDOM["seed"], RANDOM["offset"], 0.5)
COUNTS = (1, 3, 127, 128, 129, 1000)
WIDE = (torch.float32, torch.float64)


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("count", COUNTS)
def test_uniforms(kernels: Kernels, count: int, dtype: torch.dtype) -> None:
    u = filled((count,), dtype, kernels.noise_uniforms, dtype, STATE, 0, count, OUT)
    assert torch.equal(u.double(), reference.uniform_noise((count,), **RANDOM))


@pytest.mark.parametrize("dtype", WIDE, ids=str)
@pytest.mark.parametrize("count", [*COUNTS, 20_000])
def test_normals(kernels: Kernels, count: int, dtype: torch.dtype) -> None:
    z = filled((count,), dtype, kernels.noise_normals, dtype, STATE, 0, count, OUT)
    truth = reference.normal_noise((count,), **RANDOM)
    if dtype == torch.float32:
        assert ulps_from(z, truth) <= 4
    else:
        assert ((z - truth).abs() <= 1e-14 * truth.abs().clamp_min(1)).all()


def test_blocks_further_on(kernels: Kernels) -> None:
    dtype, entry = torch.float32, kernels.noise_normals
    z = filled((300,), dtype, entry, dtype, STATE, 5, 300, OUT)
    whole = filled((940,), dtype, entry, dtype, STATE, 0, 940, OUT)
    assert torch.equal(z, whole[640:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", COUNTS)
def test_gaussian_ops(kernels: Kernels, count: int, dtype: torch.dtype) -> None:
    x, variance, grad = random_tensors((count,), (count,), (count,), dtype=dtype, seed=count)
    variance = variance.square() + 0.5
    z = reference.normal_noise((count,), **RANDOM)

    def result(entry: str, *operands: object) -> Tensor:
        known = (dtype, STATE, *operands, OUT, 0, count)
        return filled((count,), dtype, getattr(kernels, entry), *known)

    wide, deviation = x.double(), (variance.double() + 1e-3).sqrt()
    dropped = result("gaussian_dropout_apply", 0.5, x)
    assert_rounded(dropped, wide * (1 + 0.5 * z), wide.abs() * (1 + z.abs()))
    noisy = result("gaussian_noise_add", 1e-3, x, variance)
    assert_rounded(noisy, wide + deviation * z, wide.abs() + deviation * z.abs())
    slope = result("gaussian_noise_d_variance", 1e-3, grad, variance)
    exact = grad.double() * z / (2 * deviation)
    assert_rounded(slope, exact, exact)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", COUNTS)
def test_concrete_dropout(kernels: Kernels, count: int, dtype: torch.dtype) -> None:
    x, grad = random_tensors((count,), (count,), dtype=dtype, seed=count)
    logit, temperature = -1.25, 0.5
    known = (dtype, STATE, logit, temperature)
    end = (OUT, 0, count)
    output = filled((count,), dtype, kernels.concrete_dropout_apply, *known, x, *end)
    sums: list[float] = []

    def backward(*arguments: object) -> None:
        sums.append(kernels.concrete_dropout_backward(*arguments))

    d_input = filled((count,), dtype, backward, *known, grad, x, *end)
    leaf = torch.tensor([logit], dtype=torch.float64, requires_grad=True)
    wide = x.double().requires_grad_()
    truth = reference.concrete_dropout(wide, leaf, temperature, **RANDOM)
    d_wide, d_logit = torch.autograd.grad(truth, (wide, leaf), grad.double())
    assert_rounded(output, truth.detach(), truth.detach(), ulps=32)
    assert_rounded(d_input, d_wide, d_wide, ulps=32)
    size = float((truth.detach() * grad.double()).abs().sum()) + 1e-30
    assert abs(sums[0] - d_logit.item()) <= 64 * torch.finfo(computing_type(dtype)).eps * size


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", COUNTS)
def test_shared_concrete_dropout(kernels: Kernels, count: int, dtype: torch.dtype) -> None:
    """Factors and slopes by themselves, then multiplied: what the other kernels do at once."""
    x, grad = random_tensors((count,), (count,), dtype=dtype, seed=count)
    real = computing_type(dtype)
    known = (dtype, STATE, -1.25, 0.5)
    slopes = torch.full((count,), math.nan, dtype=real)
    entry = kernels.concrete_dropout_factors
    factors = filled((count,), real, entry, *known, 0, count, OUT, slopes)
    assert_same_bits(factors, filled((count,), real, entry, *known, 0, count, OUT, None))
    ones = torch.ones(count, dtype=torch.float64)
    logit = torch.tensor([-1.25], dtype=torch.float64)
    exact = reference.concrete_dropout(ones, logit, 0.5, **RANDOM)
    assert_rounded(factors, exact, exact, ulps=32)

    output = filled(
        (count,), dtype, kernels.concrete_dropout_multiply, dtype, x, factors, count, OUT
    )
    assert_same_bits(output, (x.to(real) * factors).to(dtype))
    sums: list[float] = []

    def backward(*arguments: object) -> None:
        sums.append(kernels.concrete_dropout_multiply_and_sum(*arguments))

    d_input = filled((count,), dtype, backward, dtype, grad, x, factors, slopes, count, OUT)
    assert_same_bits(d_input, (grad.to(real) * factors).to(dtype))
    terms = x.double() * grad.double() * factors.double() * slopes.double()
    size = float(terms.abs().sum())
    assert abs(sums[0] - float(terms.sum())) <= 8 * torch.finfo(real).eps * size
