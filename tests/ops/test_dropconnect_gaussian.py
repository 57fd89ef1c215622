"""DropConnect's Gaussian inference: averages of activations, and the closed form for ReLU."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from support.tensors import DTYPES, random_tensors
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fused_dropout
from fused_dropout import functional, reference
from fused_dropout.functional import _dropconnect_gaussian as gaussian


def operands(
    rows: int = 3, outs: int = 7, ins: int = 20, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    return [t / 2 for t in random_tensors((rows, ins), (outs, ins), (outs,), dtype=dtype, seed=9)]


# ---- sampling


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("samples", [1, 2, 301])
def test_follows_the_reference(dtype: torch.dtype, samples: int, place: torch.device) -> None:
    input, weight, bias = operands(dtype=dtype)
    for options in ({}, {"convention": "paper"}, {"mask_bias": False}):
        ours = functional.dropconnect_gaussian(
            input, weight, bias, 0.3, torch.sigmoid, samples, seed=5, **options
        )
        wide = (t.double().cpu() for t in (input, weight, bias))
        truth = reference.dropconnect_gaussian(
            *wide, 0.3, torch.sigmoid, samples, seed=5, **options
        )
        assert ours.dtype == dtype
        rtol = 4 * max(torch.finfo(dtype).eps, 2.0**-22)  # normals are within 4 ulps of float32
        torch.testing.assert_close(ours.double().cpu(), truth, rtol=rtol, atol=1e-6)


def test_chunks_are_the_stream_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """However it is cut, the noise is that of one tensor of all samples."""
    given = operands(3, 7)  # 21 numbers a sample: parts begin anywhere in a block of noise
    call = partial(functional.dropconnect_gaussian, *given, 0.3, "tanh", 100, seed=6)
    whole = call()
    truth = reference.dropconnect_gaussian(*given, 0.3, torch.tanh, 100, seed=6)
    torch.testing.assert_close(whole, truth, rtol=1e-5, atol=1e-6)
    for elements in (1, 22, 64, 1000):
        monkeypatch.setitem(gaussian._CHUNK_ELEMENTS, "cpu", elements)
        torch.testing.assert_close(call(), whole, rtol=1e-6, atol=1e-7)
        assert torch.equal(call(), call())


def test_gradients_of_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [t.requires_grad_() for t in operands()]
    call = partial(functional.dropconnect_gaussian, *given, 0.3, "tanh", 100, seed=6)
    wanted = torch.autograd.grad(call().sum(), given)
    monkeypatch.setitem(gaussian._CHUNK_ELEMENTS, "cpu", 64)
    ours = torch.autograd.grad(call().sum(), given)
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
    (slope,) = torch.autograd.grad(call().square().sum(), given[1], create_graph=True)
    (ours,) = torch.autograd.grad(slope.square().sum(), given[0])
    monkeypatch.undo()
    (slope,) = torch.autograd.grad(call().square().sum(), given[1], create_graph=True)
    (wanted,) = torch.autograd.grad(slope.square().sum(), given[0])
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("needs_gradients", [False, True])
def test_memory_does_not_grow_with_the_samples(needs_gradients: bool) -> None:
    """What saved tensors hold is counted, and the largest tensor that the activation sees."""
    input, weight, bias = operands(64, 32)
    weight.requires_grad_(needs_gradients)
    largest, saved = [], []
    limit = gaussian._CHUNK_ELEMENTS["cpu"]

    def activation(x: Tensor) -> Tensor:
        largest.append(x.numel())
        return x.tanh()

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = functional.dropconnect_gaussian(input, weight, bias, 0.5, activation, 3000, seed=1)
    assert max(largest) <= limit < 3000 * 64 * 32 / 4
    # Of a part mean and deviation are kept, which all parts share, and nothing of the samples.
    assert max(saved, default=0) <= 64 * 32
    if needs_gradients:
        output.sum().backward()
        assert max(largest) <= limit


@pytest.mark.parametrize("learns", ["nothing", "the layer", "the activation"])
def test_parts_are_computed_again_only_for_gradients(
    learns: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an activation's parameters it shows in the first part, which is therefore kept."""
    input, weight, bias = operands(1, 1024)
    weight.requires_grad_(learns == "the layer")
    slope = torch.full((), 0.25, requires_grad=learns == "the activation")
    if learns == "nothing":
        monkeypatch.setattr(gaussian, "checkpoint", None)
    calls = []

    def activation(x: Tensor) -> Tensor:
        calls.append(x.shape[0])
        return torch.where(x < 0, slope * x, x)

    parts = 3
    samples = parts * (gaussian._CHUNK_ELEMENTS["cpu"] // 1024)
    output = functional.dropconnect_gaussian(input, weight, bias, 0.5, activation, samples, seed=1)
    assert (len(calls), sum(calls)) == (parts, samples)
    if learns == "nothing":
        assert not output.requires_grad
        return
    output.sum().backward()
    assert len(calls) == parts + (parts if learns == "the layer" else parts - 1)
    if learns == "the activation":
        expected, step = [], 1 / 64
        for changed in (0.25 - step, 0.25 + step):
            slope.detach().fill_(changed)
            with torch.no_grad():
                expected.append(
                    functional.dropconnect_gaussian(
                        input, weight, bias, 0.5, activation, samples, seed=1
                    )
                )
        assert slope.grad is not None
        derivative = (expected[1] - expected[0]).double().sum() / (2 * step)
        torch.testing.assert_close(slope.grad.double(), derivative, rtol=1e-3, atol=1e-3)


def test_sums_of_many_samples_are_accurate(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of 3000 parts that are all 0.1; float32 sums of them in turn are 1e-5 off."""
    monkeypatch.setitem(gaussian._CHUNK_ELEMENTS, "cpu", 1)
    tenth = torch.tensor(0.1)
    ours = functional.dropconnect_gaussian(
        *operands(1, 4), 0.5, lambda x: torch.full_like(x, 0.1), 3000, seed=2
    )
    assert (ours == tenth).all()


def test_pure_function_of_its_random_state(place: torch.device) -> None:
    call = partial(functional.dropconnect_gaussian, *operands(), 0.3, "relu", 10)
    state = fused_dropout.make_rng_state(4)
    assert torch.equal(call(seed=4), call(rng_state=state))
    assert not torch.equal(call(seed=4), call(seed=5))
    draw = torch.Generator(place).manual_seed(1)
    first, second = call(generator=draw), call(generator=draw)
    assert not torch.equal(first, second)
    assert torch.equal(call(generator=draw.manual_seed(1)), first)
    torch.manual_seed(3)
    first = call()
    torch.manual_seed(3)
    assert torch.equal(call(), first)


def test_any_callable_averages() -> None:
    """Of no smooth function, of one that mixes units, and of one with parameters."""
    given = operands()
    mean, variance = functional.dropconnect_moments(*given, 0.3)
    share = functional.dropconnect_gaussian(*given, 0.3, lambda x: x > 0, 20_000, seed=1)
    expected = torch.special.ndtr(mean / variance.sqrt())
    # 21 shares: 5 standard errors of a share of 20000 are at most 0.018.
    torch.testing.assert_close(share, expected, rtol=0, atol=0.018)
    mixed = functional.dropconnect_gaussian(*given, 0.3, torch.nn.Softmax(-1), 50, seed=1)
    torch.testing.assert_close(mixed.sum(-1), torch.ones(3))
    halved = functional.dropconnect_gaussian(operands(outs=8)[0], operands(outs=8)[1], None, 0.3,
                                             torch.nn.GLU(), 50, seed=1)  # fmt: skip
    assert halved.shape == (3, 4)
    learned = torch.nn.PReLU()
    functional.dropconnect_gaussian(*given, 0.3, learned, 50, seed=1).sum().backward()
    assert learned.weight.grad is not None


def test_a_layer_that_drops_nothing_or_all_is_the_activation_of_its_mean() -> None:
    input, weight, bias = operands()
    ours = functional.dropconnect_gaussian(input, weight, bias, 0.0, "tanh")
    dense = torch.nn.functional.linear(input, weight, bias)
    torch.testing.assert_close(ours, dense.tanh())
    nothing = functional.dropconnect_gaussian(input, weight, bias, 1.0, "sigmoid")
    assert (nothing == 0.5).all()


def test_compiled_in_few_parts() -> None:
    given = operands(64, 32)

    def call(*tensors: Tensor) -> Tensor:
        return functional.dropconnect_gaussian(*tensors, 0.3, "tanh", 1000, seed=3)

    assert len(list(gaussian._chunks(torch.empty(64, 32), 1000))) > gaussian._MOST_TRACED_CHUNKS
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), call(*given), rtol=1e-5, atol=1e-6)


# ---- the closed form


def test_the_closed_form_is_the_limit_of_sampling() -> None:
    """84 means; 5 standard errors each."""
    given = operands(6, 14)
    samples = 40_000
    exact = functional.dropconnect_gaussian(*given, 0.3, "relu", None)
    sampled = functional.dropconnect_gaussian(*given, 0.3, "relu", samples, seed=11)
    mean, variance = functional.dropconnect_moments(*given, 0.3)
    assert torch.equal(exact, functional.expected_relu(mean, variance))
    assert ((sampled - exact).abs() < 5 * (variance / samples).sqrt()).all()
    assert not torch.equal(sampled, exact)


# t, and Phi(t) t + phi(t), worked out with 50 digits.
KNOWN = (
    (-30.0, 1.6319567340914e-199),
    (-10.0, 7.4745602545893e-25),
    (-3.0, 3.8215431704772e-4),
    (-0.5, 0.19779655740131),
    (0.0, 0.39894228040143),
    (0.5, 0.69779655740131),
    (3.0, 3.000382154317),
    (30.0, 30.0),
)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tails(dtype: torch.dtype) -> None:
    """To the last place of what the dtype can hold."""
    for t, known in KNOWN:
        mean = torch.tensor([2 * t], dtype=dtype)
        ours = functional.expected_relu(mean, torch.full_like(mean, 4.0))
        wanted = torch.tensor([2 * known], dtype=torch.float64)
        rtol = 1e-12 if dtype == torch.float64 else torch.finfo(dtype).eps
        torch.testing.assert_close(
            ours.double(), wanted.to(dtype).double(), rtol=rtol, atol=torch.finfo(dtype).tiny
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_variance_is_relu(dtype: torch.dtype) -> None:
    mean = torch.tensor([-2.0, 0.0, 3.0], dtype=dtype, requires_grad=True)
    variance = torch.zeros(3, dtype=dtype, requires_grad=True)
    output = functional.expected_relu(mean, variance)
    assert torch.equal(output, torch.relu(mean))
    d_mean, d_variance = torch.autograd.grad(output.sum(), (mean, variance))
    assert d_mean.tolist() == [0, 0, 1] and d_variance.tolist() == [0, 0, 0]


def test_derivatives_of_the_closed_form() -> None:
    mean = torch.tensor([-2.0, -0.1, 0.0, 0.4, 3.0], dtype=torch.float64, requires_grad=True)
    variance = torch.tensor([0.5, 1.0, 2.0, 0.1, 4.0], dtype=torch.float64, requires_grad=True)
    assert gradcheck(functional.expected_relu, (mean, variance), check_forward_ad=True)
    assert gradgradcheck(functional.expected_relu, (mean, variance))
    # The derivatives are Phi(t) and phi(t) / (2 deviation).
    d_mean, d_variance = torch.autograd.grad(
        functional.expected_relu(mean, variance).sum(), (mean, variance)
    )
    t = mean / variance.sqrt()
    torch.testing.assert_close(d_mean, torch.special.ndtr(t))
    density = torch.exp(-t.square() / 2) / math.sqrt(2 * math.pi)
    torch.testing.assert_close(d_variance, density / (2 * variance.sqrt()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_nan_at_the_ends_of_the_range(dtype: torch.dtype) -> None:
    tiny, huge = torch.finfo(dtype).tiny, torch.finfo(dtype).max
    cases = [(m, v) for m in (-huge, -1.0, -tiny, 0.0, tiny, 1.0, huge) for v in (0, tiny, 1, huge)]
    mean, variance = (
        torch.tensor(column, dtype=dtype, requires_grad=True) for column in zip(*cases, strict=True)
    )
    output = functional.expected_relu(mean, variance)
    gradients = torch.autograd.grad(output.sum(), (mean, variance))
    assert output.isfinite().all() and (output >= 0).all()
    assert all(gradient.isfinite().all() for gradient in gradients)


# ---- errors


def test_wrong_calls() -> None:
    call = partial(functional.dropconnect_gaussian, *operands())
    with pytest.raises(ValueError, match="activation must be one of 'relu'"):
        call(activation="rleu")
    with pytest.raises(TypeError, match="activation must be a callable or one of"):
        call(activation=3)
    with pytest.raises(TypeError, match="activation must return a Tensor, got NoneType"):
        call(activation=lambda x: None)
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        call(samples=0)
    with pytest.raises(TypeError, match="samples must be an int"):
        call(samples=1.5)
    with pytest.raises(ValueError, match="samples=None needs activation='relu', got 'tanh'"):
        call(activation="tanh", samples=None)
    with pytest.raises(ValueError, match="at most one of generator, seed and rng_state"):
        call(seed=1, rng_state=fused_dropout.make_rng_state(1))
    with pytest.raises(RuntimeError, match="variance must have shape"):
        functional.expected_relu(torch.zeros(3), torch.zeros(2))
