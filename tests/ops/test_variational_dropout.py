"""VariationalDropoutLinear: its noise, divergence, pruning, and that it learns to prune."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from support.noise_checks import check_mean
from support.tensors import random_tensor

from fused_dropout.nn import VariationalDropoutLinear
from fused_dropout.reference import _noise as reference


def noisy_layer(**kwargs) -> VariationalDropoutLinear:
    """30 -> 20 with log alpha from far below to far above the threshold."""
    torch.manual_seed(3)
    layer = VariationalDropoutLinear(30, 20, **kwargs)
    with torch.no_grad():
        layer.log_sigma2.uniform_(-12, 6)
    return layer


def variance_of_weights(layer: VariationalDropoutLinear) -> torch.Tensor:
    squares = layer.weight**2
    return (layer.log_sigma2 - (squares + 1e-8).log()).clamp(-8, 8).exp() * squares


def test_parameters(place: torch.device) -> None:
    torch.manual_seed(3)
    linear = torch.nn.Linear(30, 20)
    torch.manual_seed(3)
    layer = VariationalDropoutLinear(30, 20)
    assert isinstance(layer, torch.nn.Linear)
    assert list(layer.state_dict()) == ["weight", "bias", "log_sigma2"]
    assert torch.equal(layer.weight, linear.weight) and torch.equal(layer.bias, linear.bias)
    assert torch.equal(layer.log_sigma2, torch.full((20, 30), -10.0))
    assert layer.weight.device == layer.log_sigma2.device == place
    other = VariationalDropoutLinear(3, 2, bias=False, log_sigma2_init=-5, dtype=torch.float64)
    assert other.bias is None and other.log_sigma2.dtype == torch.float64
    with torch.no_grad():
        other.log_sigma2.zero_()
    other.reset_parameters()
    assert torch.equal(other.log_sigma2, torch.full((2, 3), -5.0, dtype=torch.float64))
    assert VariationalDropoutLinear(3, 2, device="meta").log_sigma2.is_meta


def test_training_is_the_local_reparameterisation() -> None:
    """On the CPU, where the random state is what torch.randint draws."""
    layer = noisy_layer().double()
    input = random_tensor((2, 5, 30), dtype=torch.float64)
    torch.manual_seed(4)
    output = layer(input)
    torch.manual_seed(4)
    seed, offset = torch.randint(-(2**63), 2**63 - 1, (2,)).tolist()
    mean = F.linear(input, layer.weight, layer.bias)
    variance = F.linear(input**2, variance_of_weights(layer))
    expected = reference.gaussian_noise(mean, variance, eps=1e-8, seed=seed, offset=offset)
    torch.testing.assert_close(output, expected)


def test_noise_is_that_of_drawing_every_weight(place: torch.device) -> None:
    """Mean and variance over many draws; false alarm below 1e-4."""
    layer = noisy_layer()
    input = random_tensor((30,))
    torch.manual_seed(1)
    outputs = layer(input.expand(40_000, 30)).double()
    weight = layer.weight + variance_of_weights(layer).sqrt() * torch.randn(4_000, 20, 30)
    drawn = (weight @ input + layer.bias).double()
    for samples in (outputs, drawn):
        mean = F.linear(input, layer.weight, layer.bias).double()
        deviation = F.linear(input**2, variance_of_weights(layer)).sqrt().double()
        z = (samples - mean) / deviation
        for unit in z.detach().t():
            check_mean(unit, 0, 1)
            check_mean(unit**2, 1, math.sqrt(2))


@pytest.mark.parametrize(
    ("weight", "log_sigma2", "variance"),
    [
        (1e-3, 2.0, math.exp(8) * 1e-6),  # log alpha would be 15.8
        (2.0, -10.0, math.exp(-8) * 4),
        (2.0, -3.0, math.exp(-3)),
        (0.0, 2.0, 0.0),
    ],
)
def test_noise_is_limited_as_the_authors_limit_it(
    weight: float, log_sigma2: float, variance: float, place: torch.device
) -> None:
    layer = VariationalDropoutLinear(1, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.fill_(weight)
        layer.log_sigma2.fill_(log_sigma2)
    torch.manual_seed(5)
    outputs = layer(torch.full((20_000, 1), 3.0, dtype=torch.float64)).detach()
    z = (outputs - 3 * weight).flatten() / math.sqrt(9 * variance + 1e-8)
    check_mean(z**2, 1, math.sqrt(2))


def test_gradients(place: torch.device) -> None:
    layer = noisy_layer().double()
    input = random_tensor((3, 30), dtype=torch.float64).requires_grad_()
    leaves = (input, layer.weight, layer.log_sigma2, layer.bias)

    def run(input, weight, log_sigma2, bias):
        torch.manual_seed(2)
        changed = {"weight": weight, "log_sigma2": log_sigma2, "bias": bias}
        return torch.func.functional_call(layer, changed, (input,)).sum()

    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


def test_evaluation_prunes_and_draws_nothing(place: torch.device) -> None:
    layer = noisy_layer().eval()
    log_alpha = layer.log_sigma2 - (layer.weight**2 + 1e-8).log()
    kept = log_alpha < 3
    assert 0.2 < kept.double().mean() < 0.8
    torch.testing.assert_close(layer.log_alpha(), log_alpha.clamp(-8, 8))
    assert torch.equal(layer.kept(), kept)
    assert layer.sparsity() == pytest.approx(1 - kept.double().mean().item())
    input = random_tensor((4, 30))
    before = torch.get_rng_state()
    expected = F.linear(input, layer.weight * kept, layer.bias)
    torch.testing.assert_close(layer(input), expected)
    assert torch.equal(torch.get_rng_state(), before)
    everything = noisy_layer(threshold=9.0).eval()
    assert everything.sparsity() == 0
    torch.testing.assert_close(everything(input), F.linear(input, layer.weight, layer.bias))
    infinite = layer.weight.detach().clone()
    infinite[~kept] = math.nan
    layer.weight = torch.nn.Parameter(infinite)
    assert layer.sparsity() > 0


def test_kl_is_equation_14(place: torch.device) -> None:
    layer = noisy_layer().double()
    log_alpha = layer.log_alpha()
    negative = (
        0.63576 * torch.sigmoid(1.87320 + 1.48695 * log_alpha)
        - 0.5 * torch.log(1 + 1 / log_alpha.exp())
        - 0.63576
    )
    torch.testing.assert_close(layer.kl(), -negative.sum())
    layer.kl().backward()
    assert layer.log_sigma2.grad.isfinite().all() and layer.weight.grad.isfinite().all()
    inside = log_alpha.abs() < 8
    assert (layer.log_sigma2.grad[inside] < 0).all(), "more noise is less information"


def test_kl_approximates_the_divergence(place: torch.device) -> None:
    """The integral that equation 14 stands for, -E log|1 + sqrt(alpha) e| + log(alpha) / 2 + C."""
    log_alpha = torch.linspace(-6, 6, 25, dtype=torch.float64)
    e = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    weight = torch.exp(-(e**2) / 2) * (e[1] - e[0]) / math.sqrt(2 * math.pi)

    def divergence(a: torch.Tensor) -> torch.Tensor:
        size = (1 + (a / 2).exp() * e).abs().clamp_min(1e-12)
        return (weight * size.log()).sum() - a / 2

    exact = torch.stack([divergence(a) for a in log_alpha])
    exact -= divergence(torch.tensor(20.0, dtype=torch.float64))  # it tends to 0, as ours does
    layer = VariationalDropoutLinear(25, 1, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.fill_(1)
        layer.log_sigma2.copy_(log_alpha)
    gain = torch.stack([single_kl(layer, k) for k in range(25)])
    assert (gain - exact).abs().max() < 0.02


def single_kl(layer: VariationalDropoutLinear, k: int) -> torch.Tensor:
    one = VariationalDropoutLinear(1, 1, dtype=torch.float64)
    with torch.no_grad():
        one.weight.copy_(layer.weight[:, k : k + 1])
        one.log_sigma2.copy_(layer.log_sigma2[:, k : k + 1])
        return one.kl()


def test_trains_and_prunes(place: torch.device) -> None:
    """Of 32 inputs 4 matter: their weights stay, most of the others go."""
    torch.manual_seed(0)
    layer = VariationalDropoutLinear(32, 3, log_sigma2_init=-5.0)
    target = torch.zeros(3, 32)
    target[:, :4] = 2 * torch.randn(3, 4).sign()
    optimizer = torch.optim.Adam(layer.parameters(), 0.03)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, 600)  # as the authors train
    for _ in range(600):
        input = torch.randn(64, 32)
        loss = (layer(input) - input @ target.t()).square().mean() + layer.kl() / 100
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    assert layer.kept()[:, :4].all()
    assert layer.sparsity() > 0.6
    layer.eval()
    input = torch.randn(256, 32)
    assert (layer(input) - input @ target.t()).square().mean() < 0.1


def test_repr_and_bad_input() -> None:
    assert repr(VariationalDropoutLinear(3, 2)) == (
        "VariationalDropoutLinear(in_features=3, out_features=2, bias=True, threshold=3.0)"
    )
    with pytest.raises(ValueError, match="threshold must be finite; got nan"):
        VariationalDropoutLinear(3, 2, threshold=math.nan)
    with pytest.raises(TypeError, match="log_sigma2_init must be a float, got str"):
        VariationalDropoutLinear(3, 2, log_sigma2_init="x")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        VariationalDropoutLinear(3, 2)(torch.ones(4, 5))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_work_alike(clone, place: torch.device) -> None:
    layer = noisy_layer(threshold=2.0)
    other = clone(layer)
    assert repr(other) == repr(layer)
    results = []
    for module in (layer, other):
        torch.manual_seed(1)
        results.append(module(torch.ones(4, 30)))
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype, place: torch.device) -> None:
    layer = noisy_layer()
    with torch.autocast(place.type, dtype=dtype):
        output = layer(random_tensor((4, 30)))
    assert output.dtype == dtype
    output.float().sum().backward()
    assert layer.log_sigma2.grad.isfinite().all()
