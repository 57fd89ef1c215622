"""zoneout: which elements are new, bit for bit; gradients; evaluation; arguments; statistics."""

from __future__ import annotations

import math

import pytest
import torch
from support.tensors import DTYPES, layouts, random_tensor
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fused_dropout
from fused_dropout import nn, reference
from fused_dropout._core import extension
from fused_dropout.functional import zoneout

SIZES = (1, 15, 16, 17, 127, 128, 129, 1000, 4095, 4097, 40_000)
INTS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def operands(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """input, previous, grad."""
    first, second, third = (random_tensor(shape, dtype, seed) for seed in range(3))
    return first, second, third


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().view(INTS[tensor.element_size()])


def any_bits(count: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Numbers of any bits: NaNs of any payload, infinities, subnormals, both zeros."""
    ints = INTS[dtype.itemsize]
    draw = torch.Generator("cpu").manual_seed(seed)
    low, high = torch.iinfo(ints).min, torch.iinfo(ints).max
    numbers = torch.randint(low, high, (count,), dtype=ints, generator=draw, device="cpu")
    return numbers.to(torch.get_default_device()).view(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [0.5, 0.1, 0.3])
def test_elements_are_moved_bit_for_bit(
    p: float, dtype: torch.dtype, backend: torch.device
) -> None:
    for size in SIZES:
        input, previous, grad = (any_bits(size, dtype, seed) for seed in range(3))
        leaves = input.requires_grad_(), previous.requires_grad_()
        output = zoneout(*leaves, p, seed=size)
        kept = reference.mask(size, p, seed=size, device=backend)
        assert torch.equal(bits(output), torch.where(kept, bits(input), bits(previous))), size
        d_input, d_previous = torch.autograd.grad(output, leaves, grad)
        assert torch.equal(bits(d_input), torch.where(kept, bits(grad), 0)), size
        assert torch.equal(bits(d_previous), torch.where(kept, 0, bits(grad))), size


@pytest.mark.parametrize("shape", [(33, 70), (3, 40, 6, 9), (2, 3, 7, 8), (2, 5, 3, 4, 6)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_strides_do_not_change_the_choice(
    shape: tuple[int, ...], dtype: torch.dtype, backend: torch.device
) -> None:
    """The new, the old state and the gradient each in other places than the others."""
    dense = operands(*shape, dtype=dtype)

    def run(input: Tensor, previous: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        leaves = input.detach().requires_grad_(), previous.detach().requires_grad_()
        output = zoneout(*leaves, 0.3, seed=2)
        assert output.stride() == torch.empty_like(input).stride()
        return output, *torch.autograd.grad(output, leaves, grad)

    expected = run(*dense)
    for place, tensor in enumerate(dense):
        for name, other in layouts(tensor):
            moved = [*dense[:place], other, *dense[place + 1 :]]
            for result, wanted in zip(run(*moved), expected, strict=True):
                assert torch.equal(result, wanted), (place, name)
    for moved in zip(*(layouts(tensor) for tensor in dense), strict=True):
        for result, wanted in zip(run(*(t for _, t in moved)), expected, strict=True):
            assert torch.equal(result, wanted), moved[0][0]


def test_any_number_of_threads(isa: str) -> None:
    input, previous, grad = operands(300_001)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            leaves = input.clone().requires_grad_(), previous.clone().requires_grad_()
            output = zoneout(*leaves, 0.3, seed=1)
            results.append((output, *torch.autograd.grad(output, leaves, grad)))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_derivatives(place: torch.device) -> None:
    leaves = [t.requires_grad_() for t in operands(6, 5, dtype=torch.float64)[:2]]

    def layer(*state: Tensor) -> Tensor:
        return zoneout(*state, 0.4, seed=5)

    assert gradcheck(layer, leaves) and gradgradcheck(layer, leaves)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_only_the_gradient_asked_for(wanted: tuple[bool, bool], place: torch.device) -> None:
    input, previous, grad = operands(300)
    grad[::3] = math.inf
    state = [t.requires_grad_(w) for t, w in zip((input, previous), wanted, strict=True)]
    zoneout(*state, 0.4, seed=1).backward(grad)
    assert [leaf.grad is not None for leaf in state] == list(wanted)
    kept = fused_dropout.mask(300, 0.4, seed=1, device=place)
    of_input = torch.where(kept, grad, 0) if wanted[0] else None
    of_previous = torch.where(kept, 0, grad) if wanted[1] else None
    for leaf, expected in zip(state, (of_input, of_previous), strict=True):
        assert expected is None or torch.equal(leaf.grad, expected)


def test_nothing_but_the_random_state_is_kept(place: torch.device) -> None:
    """16 bytes, whatever the size of the state."""
    saved: list[Tensor] = []
    state = [t.requires_grad_() for t in operands(4096)[:2]]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        zoneout(*state, 0.3)
    assert [(t.dtype, tuple(t.shape)) for t in saved] == [(torch.int64, (2,))]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [0.5, 0.1, 0.9, 1 - 2**-16])
def test_evaluation_is_the_expectation(p: float, dtype: torch.dtype, place: torch.device) -> None:
    """With the rate of the mask, not with 1 - p."""
    input, previous, _ = operands(500, dtype=dtype)
    q = reference.keep_rate(p)
    output = zoneout(input, previous, p, training=False)
    exact = q * input.double() + (1 - q) * previous.double()
    size = q * input.double().abs() + (1 - q) * previous.double().abs()
    assert output.dtype == dtype
    assert ((output - exact).abs() <= 1.5 * torch.finfo(dtype).eps * size).all()


def test_evaluation_of_infinities(place: torch.device) -> None:
    """A sum, not a step from one to the other, which would make them NaNs."""
    infinite = torch.full((3,), math.inf)
    assert (zoneout(infinite, torch.ones(3), 0.5, False) == math.inf).all()
    assert (zoneout(torch.ones(3), infinite, 0.5, False) == math.inf).all()


def test_rates_at_which_nothing_is_drawn(place: torch.device) -> None:
    """One state or the other as it is, also beside NaNs; the generator stays where it was."""
    input, previous, _ = operands(10)
    nans = torch.full((10,), math.nan)
    before = torch.random.get_rng_state()
    for training in (True, False):
        assert torch.equal(zoneout(input, nans, 0.0, training), input)
        assert torch.equal(zoneout(nans, previous, 1.0, training), previous)
        assert torch.equal(zoneout(input, nans, 1e-6, training), input)  # q is 1
    zoneout(input, previous, 0.5, training=False)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_dtypes_that_differ(place: torch.device) -> None:
    """The first step of a cell under autocast: a half new state, float32 zeros before it."""
    input, previous, grad = operands(200)
    half = input.bfloat16().requires_grad_()
    output = zoneout(half, previous, 0.3, seed=1)
    kept = fused_dropout.mask(200, 0.3, seed=1, device=place)
    assert output.dtype == torch.float32
    assert torch.equal(output, torch.where(kept, half, previous))
    assert torch.autograd.grad(output, half, grad)[0].dtype == torch.bfloat16


def test_wrong_arguments(place: torch.device) -> None:
    input = torch.zeros(3, 4)
    for error, message, call in (
        (ValueError, "p, the drop probability", lambda: zoneout(input, input, 1.5)),
        (ValueError, "at most one", lambda: zoneout(input, input, seed=1, generator=_generator())),
        (RuntimeError, r"previous must have shape \[3, 4\]", lambda: zoneout(input, input[0])),
        (RuntimeError, "input must have a dtype", lambda: zoneout(input.long(), input)),
        (RuntimeError, "previous must have a dtype", lambda: zoneout(input, input.long())),
        (NotImplementedError, "input must have", lambda: zoneout(input.cfloat(), input)),
        (TypeError, "previous must be a Tensor", lambda: zoneout(input, None)),
        (RuntimeError, "previous must be on the device", lambda: zoneout(input, input.to("meta"))),
        (RuntimeError, "previous must be a dense", lambda: zoneout(input, input.to_sparse())),
    ):
        with pytest.raises(error, match=message):
            call()


def _generator() -> torch.Generator:
    return torch.Generator(torch.get_default_device())


def test_wrong_arguments_of_the_operators() -> None:
    ops, state = extension.operators(), fused_dropout.make_rng_state(1)
    input = torch.zeros(3, 4)
    for message, call in (
        ("previous must have shape", lambda: ops.zoneout(input, input[0], state, 0.5)),
        ("previous must have dtype", lambda: ops.zoneout(input, input.double(), state, 0.5)),
        ("p must be a probability", lambda: ops.zoneout(input, input, state, 2.0)),
        ("p must be a probability", lambda: ops.zoneout_backward(input, state, math.nan)),
        ("expected float32", lambda: ops.zoneout_backward(input.long(), state, 0.5)),
        ("rng_state must be", lambda: ops.zoneout(input, input, state[:1], 0.5)),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()


@pytest.mark.parametrize("p", [0.05, 0.5])
def test_rates(p: float, place: torch.device) -> None:
    """Within 5 standard errors, a false alarm in 1.7 million."""
    count = 1 << 20
    old = zoneout(torch.zeros(count), torch.ones(count), p, seed=11).double().mean().item()
    assert abs(old - p) <= 5 * math.sqrt(p * (1 - p) / count) + 2**-17


# ---- the module


def test_module(place: torch.device) -> None:
    layer = nn.Zoneout(0.3)
    input, previous, _ = operands(7, 9)
    torch.manual_seed(4)
    output = layer(input, previous)
    torch.manual_seed(4)
    assert torch.equal(output, zoneout(input, previous, 0.3))
    expected = zoneout(input, previous, 0.3, training=False)
    assert torch.equal(layer.eval()(input, previous), expected)
    assert repr(layer) == "Zoneout(p=0.3)" and nn.Zoneout().p == 0.5
    with pytest.raises(ValueError, match="p, the drop probability"):
        nn.Zoneout(-0.1)


def test_an_lstm_learns_with_it() -> None:
    """The paper's cell: the state takes part of each step from the one before."""
    torch.manual_seed(0)
    cell, head = torch.nn.LSTMCell(2, 16), torch.nn.Linear(16, 1)
    zoneout_h, zoneout_c = nn.Zoneout(0.05), nn.Zoneout(0.3)
    x = torch.randn(9, 32, 2)
    target = x[:, :, :1].sum(0)
    optimizer = torch.optim.Adam([*cell.parameters(), *head.parameters()], lr=0.02)
    losses = []
    for _ in range(60):
        h = c = torch.zeros(32, 16)
        for step in x:
            new_h, new_c = cell(step, (h, c))
            h, c = zoneout_h(new_h, h), zoneout_c(new_c, c)
        loss = (head(h) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
