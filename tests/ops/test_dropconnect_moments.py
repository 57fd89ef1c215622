"""The moments of DropConnect's pre-activations: exact, and those of real masks."""

from __future__ import annotations

import math

import pytest
import torch
from support.accuracy import is_accurate
from support.devices import threads
from support.tensors import DTYPES, computing_type, random_tensors
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual

from fused_dropout import functional, reference
from fused_dropout._core import extension

MANY_ROWS = 48  # from here on the CPU multiplies
# Rows, output features, input features; the largest has several threads' blocks and panels.
SHAPES = ((0, 3, 4), (3, 0, 4), (3, 2, 0), (60, 2, 0), (1, 1, 1), (2, 33, 130), (47, 9, 513),
          (48, 9, 513), (200, 70, 33))  # fmt: skip


def operands(rows: int, outs: int, ins: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    shapes = (rows, ins), (outs, ins), (outs,)
    return [tensor / 3 for tensor in random_tensors(*shapes, dtype=dtype, seed=6)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_follows_the_reference(
    shape: tuple[int, int, int], dtype: torch.dtype, backend: torch.device, isa: str
) -> None:
    for p, options in (
        (0.5, {}),
        (0.3, {"convention": "paper"}),
        (0.1, {"mask_bias": False}),
        (0.9, {"mask_bias": False, "convention": "paper"}),
        (0.0, {}),
        (1.0, {}),
        (1.0, {"mask_bias": False}),
    ):
        given = operands(*shape, dtype)
        real = computing_type(dtype)
        ours = functional.dropconnect_moments(*given, p, **options)
        own = reference.dropconnect_moments(*(t.to(real) for t in given), p, **options)
        truth = reference.dropconnect_moments(*(t.double() for t in given), p, **options)
        for one, torchs, exact in zip(ours, own, truth, strict=True):
            assert one.dtype == real
            assert is_accurate(one, torchs, exact, ulps=16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_weight_that_is_squared_in_parts(dtype: torch.dtype, place: torch.device) -> None:
    """More elements than are squared at a time, and several threads' tasks of every kind."""
    given = operands(MANY_ROWS, 700, 1600, dtype)
    with threads(2):
        ours = functional.dropconnect_moments(*given, 0.3)
    own, truth = (
        reference.dropconnect_moments(*(t.cpu().to(real) for t in given), 0.3)
        for real in (torch.float32, torch.float64)
    )
    for one, torchs, exact in zip(ours, own, truth, strict=True):
        assert is_accurate(one, torchs, exact, ulps=16)


@pytest.mark.parametrize("mask_bias", [True, False])
@pytest.mark.parametrize("convention", ["inverted", "paper"])
def test_moments_of_real_masks(convention: str, mask_bias: bool) -> None:
    """Of each unit, over 20000 masks: within 5 standard errors, and on average within 0.2 %.

    40 units have 160 moments in all four cases; with probability 1e-4 a right one fails.
    """
    masks, ins, outs, p = 20_000, 200, 40, 0.5
    draw = torch.Generator().manual_seed(7)
    x = torch.rand(ins, generator=draw) + 0.5
    weight = torch.randn(outs, ins, generator=draw) * 0.3 + 1.0
    bias = torch.randn(outs, generator=draw) * 5
    options = {"convention": convention, "mask_bias": mask_bias}
    drawn = functional.dropconnect_linear(
        x.expand(masks, ins), weight, bias, p, mask="row", seed=8, **options
    ).double()
    mean, variance = functional.dropconnect_moments(x, weight, bias, p, **options)
    measured, spread = drawn.mean(0), drawn.var(0)
    fourth = (drawn - measured).pow(4).mean(0)
    assert ((measured - mean).abs() / (spread / masks).sqrt()).max() < 5
    error = ((fourth - spread.square()) / masks).sqrt()
    assert ((spread - variance).abs() / error).max() < 5
    assert ((measured - mean).abs() / mean.abs()).mean() < 0.002
    assert abs((spread / variance).mean() - 1) < 0.01


def test_half_precision_keeps_small_variances() -> None:
    """Squares of numbers that float16 has, which float16 has not."""
    x, weight = torch.full((8,), 1e-3).half(), torch.full((2, 8), 1e-3).half()
    mean, variance = functional.dropconnect_moments(x, weight, p=0.5)
    assert mean.dtype == variance.dtype == torch.float32
    exact = 8 * x[0].double().square() * weight[0, 0].double().square()
    torch.testing.assert_close(variance.double(), exact.expand(2), rtol=1e-6, atol=0)


def test_leading_dimensions_and_a_single_row() -> None:
    input, weight, bias = operands(6, 5, 7)
    flat = functional.dropconnect_moments(input, weight, bias)
    stacked = functional.dropconnect_moments(input.view(2, 3, 7), weight, bias)
    assert stacked.mean.shape == stacked.variance.shape == (2, 3, 5)
    assert torch.equal(stacked.mean.view(6, 5), flat.mean)
    one = functional.dropconnect_moments(input[0], weight, bias)
    torch.testing.assert_close(one.variance, flat.variance[0])


@pytest.mark.parametrize("rows", [3, MANY_ROWS])
def test_strides_change_no_bit(rows: int, place: torch.device) -> None:
    input, weight, bias = operands(rows, 40, 70)
    wanted = functional.dropconnect_moments(input, weight, bias)
    for x in (input, input.T.contiguous().T, torch.stack([input, input], -1)[..., 0]):
        for w in (weight, weight.T.contiguous().T):
            for b in (bias, torch.stack([bias, bias + 1], -1)[..., 0]):
                for ours, one in zip(functional.dropconnect_moments(x, w, b), wanted, strict=True):
                    assert torch.equal(ours, one)


def test_threads_change_no_bit_with_few_rows() -> None:
    given = operands(MANY_ROWS - 1, 300, 700)
    with threads(1):
        wanted = functional.dropconnect_moments(*given)
    with threads(3):
        ours = functional.dropconnect_moments(*given)
    assert torch.equal(ours.mean, wanted.mean) and torch.equal(ours.variance, wanted.variance)


@pytest.mark.parametrize("mask_bias", [True, False])
def test_derivatives(mask_bias: bool, place: torch.device) -> None:
    given = [t.requires_grad_() for t in operands(3, 4, 5, torch.float64)]

    def moments(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(functional.dropconnect_moments(*tensors, 0.3, mask_bias=mask_bias))

    assert gradcheck(moments, given, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(moments, given)
    for which in (0, 1):  # one result alone
        assert gradcheck(lambda *tensors, k=which: moments(*tensors)[k], given)


def test_derivatives_of_half_precision_are_rounded_once() -> None:
    given = [t.requires_grad_() for t in operands(5, 4, 30, torch.bfloat16)]
    wide = [t.detach().double().requires_grad_() for t in given]

    def gradients(tensors: list[Tensor], moments: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(moments[0].sum() + moments[1].sum(), tensors)

    ours = gradients(given, functional.dropconnect_moments(*given, 0.3))
    for one, exact in zip(
        ours, gradients(wide, reference.dropconnect_moments(*wide, 0.3)), strict=True
    ):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.double(), exact, rtol=2**-8, atol=1e-6)


def test_tangents_of_each_operand() -> None:
    given = operands(3, 4, 5, torch.float64)
    directions = operands(3, 4, 5, torch.float64)[::-1]
    for k, tensor in enumerate(given):
        direction = torch.ones_like(tensor) + directions[0].sum()
        with dual_level():
            dual = [*given[:k], make_dual(tensor, direction), *given[k + 1 :]]
            mean, variance = functional.dropconnect_moments(*dual, 0.3)
            tangents = [unpack_dual(moment).tangent for moment in (mean, variance)]
        step = 1e-6
        moved = [
            [*given[:k], tensor + sign * step * direction, *given[k + 1 :]] for sign in (1, -1)
        ]
        there, back = (reference.dropconnect_moments(*it, 0.3) for it in moved)
        for tangent, a, b in zip(tangents, there, back, strict=True):
            torch.testing.assert_close(tangent, (a - b) / (2 * step), rtol=1e-6, atol=1e-8)


def test_a_batch_of_inputs_is_one_call() -> None:
    input, weight, bias = operands(6, 4, 5)
    items = input.view(2, 3, 5)
    batched = torch.func.vmap(lambda x: functional.dropconnect_moments(x, weight, bias))(items)
    wanted = functional.dropconnect_moments(items, weight, bias)
    torch.testing.assert_close(tuple(batched), tuple(wanted))
    weights = torch.stack([weight, 2 * weight])
    each = torch.func.vmap(lambda w: functional.dropconnect_moments(input, w, bias))(weights)
    torch.testing.assert_close(
        each[1][1], functional.dropconnect_moments(input, weights[1], bias)[1]
    )


def test_multiply_adds_are_counted() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        functional.dropconnect_moments(*operands(3, 4, 5))
    assert counter.get_total_flops() == 2 * 2 * 3 * 4 * 5


def test_compiled_whole() -> None:
    given = operands(3, 4, 5)
    compiled = torch.compile(
        lambda *t: tuple(functional.dropconnect_moments(*t)), fullgraph=True, backend="aot_eager"
    )
    torch.testing.assert_close(compiled(*given), tuple(functional.dropconnect_moments(*given)))


def test_autocast_computes_in_its_dtype() -> None:
    given = operands(3, 4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = functional.dropconnect_moments(*given)
    wanted = functional.dropconnect_moments(*(t.bfloat16() for t in given))
    assert torch.equal(ours.variance, wanted.variance)


def test_nothing_kept_is_0_whatever_the_operands_are() -> None:
    moments = functional.dropconnect_moments(torch.full((2, 3), math.inf), torch.ones(4, 3), p=1.0)
    assert not moments.mean.any() and not moments.variance.any()


def test_wrong_calls() -> None:
    input, weight, bias = operands(3, 4, 5)
    wrong = functional.dropconnect_moments
    with pytest.raises(ValueError, match="p, the drop probability"):
        wrong(input, weight, bias, 1.5)
    with pytest.raises(ValueError, match="convention must be one of 'inverted', 'paper'"):
        wrong(input, weight, bias, convention="outverted")
    with pytest.raises(TypeError, match="mask_bias must be a bool, got 1"):
        wrong(input, weight, bias, mask_bias=1)
    with pytest.raises(RuntimeError, match=r"in_features = weight\.shape"):
        wrong(input[:, 1:], weight, bias)
    with pytest.raises(RuntimeError, match="bias must have shape"):
        wrong(input, weight, bias[1:])
    with pytest.raises(TypeError, match="weight must be a Tensor, got NoneType"):
        wrong(input, None)
    operator = extension.operators().dropconnect_moments
    with pytest.raises(RuntimeError, match="weight must have shape"):
        operator(input, weight[:, 1:], None, 1.0, 1.0, True)
    with pytest.raises(RuntimeError, match="variance_scale must be at least 0"):
        operator(input, weight, None, 1.0, -1.0, True)
