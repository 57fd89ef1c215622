"""gaussian_noise: values, gradients to mean and variance, layouts, random sources, statistics."""

from __future__ import annotations

import math

import pytest
import torch
from support.noise_checks import SIZES, assert_rounded, check_neighbours, check_normal, layouts
from support.tensors import DTYPES, random_tensor
from torch import Tensor

import fused_dropout
from fused_dropout._core import extension
from fused_dropout.functional import gaussian_noise
from fused_dropout.nn import GaussianNoise
from fused_dropout.reference import _noise as reference

EPS = 1e-8
LARGE = 1 << 18


def operands(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """mean, variance, grad_output; some variances are 0."""
    variance = random_tensor(shape, dtype=dtype, seed=1).square()
    return (
        random_tensor(shape, dtype=dtype),
        torch.where(variance < 0.01, 0, variance),
        random_tensor(shape, dtype=dtype, seed=2),
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_matches_the_reference(dtype: torch.dtype, backend: torch.device) -> None:
    for size in SIZES:
        mean, variance, grad = operands(size, dtype=dtype)
        leaves = mean.requires_grad_(), variance.requires_grad_()
        output = gaussian_noise(*leaves, eps=EPS, seed=7)
        d_mean, d_variance = torch.autograd.grad(output, leaves, grad)
        assert (output.dtype, d_variance.dtype, output.device) == (dtype, dtype, backend)
        assert torch.equal(d_mean, grad)
        wide = [tensor.detach().double().requires_grad_() for tensor in leaves]
        truth = reference.gaussian_noise(*wide, eps=EPS, seed=7)
        _, d_truth = torch.autograd.grad(truth, wide, grad.double())
        noise = truth.detach() - wide[0].detach()
        assert_rounded(output.detach(), truth.detach(), wide[0].detach().abs() + noise.abs())
        assert_rounded(d_variance, d_truth, d_truth)


@pytest.mark.parametrize("layout", ["channels_last", "reversed", "gaps", "misaligned"])
def test_layouts(layout: str, backend: torch.device) -> None:
    mean, variance, grad = operands(3, 5, 7, 9)

    def run(*leaves: Tensor) -> tuple[Tensor, ...]:
        leaves = tuple(leaf.detach().requires_grad_() for leaf in leaves)
        output = gaussian_noise(*leaves, seed=2)
        return output, *torch.autograd.grad(output, leaves, grad)

    dense = run(mean, variance)
    for a, b in ((layouts(mean)[layout], variance), (mean, layouts(variance)[layout])):
        results = run(a, b)
        assert results[0].stride() == torch.empty_like(a).stride()
        for mine, expected in zip(results, dense, strict=True):
            assert torch.equal(mine, expected)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_only_the_gradient_asked_for(wanted: tuple[bool, bool], place: torch.device) -> None:
    mean, variance, grad = operands(200)
    leaves = [t.clone().requires_grad_(w) for t, w in zip((mean, variance), wanted, strict=True)]
    gaussian_noise(*leaves, seed=1).backward(grad)
    assert [leaf.grad is not None for leaf in leaves] == list(wanted)


def test_variance_of_zero(place: torch.device) -> None:
    """eps alone gives the noise, and the gradient stays finite."""
    variance = torch.zeros(500, requires_grad=True)
    output = gaussian_noise(torch.ones(500), variance, eps=1e-4, seed=1)
    assert 0.005 < output.std().item() < 0.02
    assert torch.autograd.grad(output.sum(), variance)[0].isfinite().all()
    assert torch.equal(gaussian_noise(torch.ones(5), torch.zeros(5), eps=0, seed=1), torch.ones(5))
    assert gaussian_noise(torch.ones(1), -torch.ones(1)).isnan().all()


def test_empty_and_scalar(place: torch.device) -> None:
    empty = torch.ones(4, 0, requires_grad=True)
    output = gaussian_noise(empty, empty)
    assert output.shape == (4, 0)
    output.sum().backward()
    assert gaussian_noise(torch.tensor(2.0), torch.tensor(1.0), seed=1).shape == ()


def test_backward_uses_the_forward_s_noise(place: torch.device) -> None:
    variance = torch.ones(200, requires_grad=True)
    output = gaussian_noise(torch.zeros(200), variance, eps=0)
    (d_variance,) = torch.autograd.grad(output.sum(), variance)
    torch.testing.assert_close(d_variance, output / 2)


def test_statistics(backend: torch.device) -> None:
    """False alarm below 1e-4."""
    mean = torch.full((LARGE,), 3.0)
    output = gaussian_noise(mean, torch.full((LARGE,), 0.25), eps=0, seed=5)
    z = (output.double() - 3) / 0.5
    check_normal(z)
    check_neighbours(z)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"eps": -1.0}, ValueError, "eps must be finite, at least 0; got -1.0"),
        ({"eps": math.inf}, ValueError, "got inf"),
        ({"eps": "x"}, TypeError, "eps must be a float, got str"),
        ({"variance": torch.ones(4)}, RuntimeError, r"variance must have shape \[3\], got \[4\]"),
        (
            {"variance": torch.ones(3).double()},
            RuntimeError,
            "variance must have the dtype of mean",
        ),
        ({"variance": 1.0}, TypeError, "variance must be a Tensor, got float"),
        ({"variance": torch.ones(3, device="meta")}, RuntimeError, "variance must be on"),
        ({"mean": torch.ones(3).long()}, RuntimeError, "mean must have a dtype"),
        ({"seed": 1.0}, TypeError, "seed must be an int"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        gaussian_noise(**{"mean": torch.ones(3), "variance": torch.ones(3), **change})


def test_raw_operators_never_crash(place: torch.device) -> None:
    ops = extension.operators()
    state = fused_dropout.make_rng_state(1)
    three = torch.ones(3)
    for op in (ops.gaussian_noise, ops.gaussian_noise_d_variance):
        with pytest.raises(RuntimeError, match="must have shape"):
            op(torch.ones(4), three, state, 0.0)
        with pytest.raises(RuntimeError, match="must have dtype"):
            op(three.double(), three, state, 0.0)
        with pytest.raises(RuntimeError, match="eps must be at least 0"):
            op(three, three, state, -1.0)
        with pytest.raises(RuntimeError, match="rng_state must be"):
            op(three, three, state[:1], 0.0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("std", [1e-4, 0.3, 20.0])
def test_the_layer_adds_noise_of_its_standard_deviation(std: float, dtype: torch.dtype) -> None:
    """In half precision too, where the variance of a small std would be 0 or far off."""
    input = random_tensor((40, 50), dtype=dtype).requires_grad_()
    torch.manual_seed(3)
    output = GaussianNoise(std)(input)
    torch.manual_seed(3)
    seed, offset = torch.randint(-(2**63), 2**63 - 1, (2,)).tolist()
    z = reference.normal_noise((40, 50), seed=seed, offset=offset)
    truth = input.detach().double() + std * z
    assert output.dtype == dtype
    assert_rounded(output.detach(), truth, truth.abs() + std)
    (d_input,) = torch.autograd.grad(output, input, torch.ones_like(output))
    assert torch.equal(d_input, torch.ones_like(input))


def test_the_layer_in_evaluation_and_without_noise() -> None:
    input = torch.randn(7)
    assert GaussianNoise(0.5).eval()(input) is input
    assert GaussianNoise(0)(input) is input
    assert GaussianNoise(0.5)(torch.ones(0, 3)).shape == (0, 3)
    assert repr(GaussianNoise(0.5)) == "GaussianNoise(std=0.5)"
    drawn = GaussianNoise(2.0)(torch.full((LARGE,), 3.0)).double()
    check_normal((drawn - 3) / 2)


@pytest.mark.parametrize(
    ("std", "error", "text"),
    [
        (-0.1, ValueError, "std must be finite, at least 0; got -0.1"),
        (math.nan, ValueError, "std must be finite.*got nan"),
        (math.inf, ValueError, "std must be finite.*got inf"),
        (1e-30, ValueError, r"std must be 0 or in \[1e-18, 1e\+18\], got 1e-30"),
        (1e30, ValueError, "std must be 0 or in"),
        (True, TypeError, "std must be a float, got bool"),
        ("1", TypeError, "std must be a float, got str"),
    ],
)
def test_the_layer_s_bad_input(std: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        GaussianNoise(std)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"mean must have a dtype.*int64"):
        GaussianNoise(1.0)(torch.ones(3, dtype=torch.int64))
