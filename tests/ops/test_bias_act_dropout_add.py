"""bias_act_dropout_add: values, gradients, strides, dtypes, threads, special values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from support.accuracy import is_accurate, own_and_truth
from support.bias_act_dropout_add import random_operands
from support.devices import generator_state, threads
from support.tensors import DTYPES, with_gradients
from torch import Tensor

import fused_dropout
from fused_dropout import reference
from fused_dropout._tools.memory import kept_for_backward
from fused_dropout.functional import bias_act_dropout_add
from fused_dropout.nn import BiasActDropoutAdd

ACTIVATIONS = tuple(reference.ACTIVATIONS)
CURVED = ("gelu", "gelu_tanh", "silu")
# Edges of blocks and groups (128), and of the tasks that threads take (32768 elements).
SHAPES = (
    (1,),
    (3, 1),
    (9, 3),
    (5, 127),
    (2, 3, 128),
    (9, 129),
    (300, 200),
    (2, 33_000),
)


def check_against_reference(operands: tuple[Tensor, ...], **kwargs: object) -> None:
    ours = with_gradients(bias_act_dropout_add, operands, **kwargs)
    own, truth = own_and_truth(reference.bias_act_dropout_add, operands, **kwargs)
    names = ("output", "d_input", "d_bias", "d_residual")
    for name, a, b, t in zip(names, ours, own, truth, strict=True):
        assert a.device == operands[0].device
        assert is_accurate(a, b, t), f"{name} of {kwargs}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_reference(
    shape: tuple[int, ...], dtype: torch.dtype, backend: torch.device
) -> None:
    operands = random_operands(shape, dtype, seed=1)
    is_small = math.prod(shape) < 10_000
    for activation in ACTIVATIONS if is_small else ("none", "gelu"):
        check_against_reference(operands, p=0.3, activation=activation, seed=7)
    check_against_reference(operands, p=0.5, activation="gelu", seed=-7, convention="paper")


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("convention", ["inverted", "paper"])
@pytest.mark.parametrize("p", [0.0, 0.1, 1.0])
def test_conventions_and_evaluation(
    p: float, convention: str, training: bool, place: torch.device
) -> None:
    operands = random_operands((6, 150), torch.float32)
    for activation in ACTIVATIONS:
        check_against_reference(
            operands,
            p=p,
            activation=activation,
            training=training,
            convention=convention,
            seed=2,
        )


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
def test_optional_operands(
    with_residual: bool, with_bias: bool, activation: str, place: torch.device
) -> None:
    input, bias, residual, grad = random_operands((7, 130), torch.float64)
    given = [input, bias if with_bias else None, residual if with_residual else None]

    def results(op: Callable[..., Tensor]) -> list[Tensor]:
        leaves = [None if t is None else t.clone().requires_grad_() for t in given]
        output = op(*leaves, 0.2, activation, seed=3)
        wanted = [leaf for leaf in leaves if leaf is not None]
        return [output.detach(), *torch.autograd.grad(output, wanted, grad)]

    for a, b in zip(
        results(bias_act_dropout_add), results(reference.bias_act_dropout_add), strict=True
    ):
        torch.testing.assert_close(a, b)


def without_cancellation(x: Tensor, activation: str) -> Tensor:
    """The activation by a formula that stays accurate where it tends to 0; torch's do not."""
    if activation == "gelu":
        return x * 0.5 * torch.erfc(-x / math.sqrt(2))
    if activation == "gelu_tanh":
        return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return F.silu(x)


@pytest.mark.parametrize("activation", CURVED)
def test_activations_are_as_accurate_as_torch_s(activation: str, backend: torch.device) -> None:
    """In each of 260 intervals, our worst error is at most torch's plus two ulps.

    Of a derivative, which is a sum of two terms, the larger term's ulps count.
    """
    x = torch.linspace(-13, 13, 260 * 128, dtype=torch.float32, device="cpu")
    x = x.to(backend).requires_grad_()
    exact = x.detach().double().requires_grad_()
    truth = without_cancellation(exact, activation)
    value = bias_act_dropout_add(x, activation=activation, training=False)
    own = reference.ACTIVATIONS[activation](x)
    slopes = [
        torch.autograd.grad(y.sum(), leaf)[0] for y, leaf in ((value, x), (own, x), (truth, exact))
    ]
    first_term = truth / exact
    for ours, torchs, t, size in (
        (value, own, truth, truth),
        (*slopes, torch.maximum(first_term.abs(), (slopes[2] - first_term).abs())),
    ):
        worst = [(y.double() - t).abs().view(260, 128).amax(1) for y in (ours, torchs)]
        ulp = torch.finfo(torch.float32).eps * size.abs().view(260, 128).amax(1)
        assert (worst[0] <= worst[1] + 2 * ulp + 1e-37).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_gradcheck(p: float, activation: str, place: torch.device) -> None:
    input, bias, residual, _ = random_operands((2, 3, 5), torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (input, bias, residual)]

    def op(*tensors: Tensor) -> Tensor:
        return bias_act_dropout_add(*tensors, p, activation, seed=3)

    assert torch.autograd.gradcheck(op, leaves)
    assert torch.autograd.gradgradcheck(op, leaves)


@pytest.mark.parametrize("activation", CURVED)
def test_double_backward_without_a_bias(activation: str, place: torch.device) -> None:
    input = random_operands((3, 4), torch.float64)[0].requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda x: bias_act_dropout_add(x, None, None, 0.3, activation, seed=3), input
    )


@pytest.mark.parametrize("activation", CURVED)
def test_double_backward_of_a_dropped_nan_is_zero(activation: str, place: torch.device) -> None:
    kept = fused_dropout.mask(64, 0.5, seed=6)
    input = torch.where(kept, 1.0, math.nan).requires_grad_()
    output = bias_act_dropout_add(input, None, None, 0.5, activation, seed=6)
    (slope,) = torch.autograd.grad(output.sum(), input, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), input)
    assert torch.equal(curvature != 0, kept)


@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("wanted", list(itertools.product([True, False], repeat=3)))
def test_only_the_gradients_asked_for(
    wanted: tuple[bool, ...], activation: str, place: torch.device
) -> None:
    operands = random_operands((6, 150), torch.float64)
    leaves = [t.clone().requires_grad_(w) for t, w in zip(operands[:3], wanted, strict=True)]
    keys = {"p": 0.2, "activation": activation, "seed": 1}
    everything = with_gradients(bias_act_dropout_add, operands, **keys)[1:]
    output = bias_act_dropout_add(*leaves, **keys)
    assert output.requires_grad == any(wanted)
    if any(wanted):
        output.backward(operands[3])
    for leaf, full in zip(leaves, everything, strict=True):
        if leaf.requires_grad:
            torch.testing.assert_close(leaf.grad, full)
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_saves_what_the_activation_needs(activation: str, place: torch.device) -> None:
    leaves = [t.requires_grad_() for t in random_operands((64, 200), torch.float32)[:3]]
    *first, state = kept_for_backward(lambda: bias_act_dropout_add(*leaves, 0.1, activation))
    operands = [] if activation == "none" else [leaf.data_ptr() for leaf in leaves[:2]]
    assert [tensor.data_ptr() for tensor in first] == operands
    assert (state.dtype, state.shape) == (torch.int64, (2,))


def strided(tensor: Tensor) -> Tensor:
    spread = torch.full([2 * size for size in tensor.shape], math.nan, dtype=tensor.dtype)
    return spread[tuple(slice(1, None, 2) for _ in tensor.shape)].copy_(tensor)


def reversed_dims(tensor: Tensor) -> Tensor:
    dims = tuple(reversed(range(tensor.dim())))
    return tensor.permute(dims).contiguous().permute(dims)


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


@pytest.mark.parametrize("view", [strided, reversed_dims, channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_strides_do_not_matter(
    dtype: torch.dtype, view: Callable[[Tensor], Tensor], backend: torch.device
) -> None:
    operands = random_operands((3, 5, 4, 31), dtype)
    keys = {"p": 0.3, "activation": "gelu", "seed": 2}
    dense = with_gradients(bias_act_dropout_add, operands, **keys)
    views = tuple(view(tensor) for tensor in operands)
    results = with_gradients(bias_act_dropout_add, views, **keys)
    for a, b in zip(results, dense, strict=True):
        assert torch.equal(a, b)
    assert results[0].stride() == torch.empty_like(views[0]).stride()


def test_expanded_tensors(place: torch.device) -> None:
    row, bias, _, _ = random_operands((1, 30), torch.float64)
    results = []
    for op in (bias_act_dropout_add, reference.bias_act_dropout_add):
        leaves = [row.clone().requires_grad_(), bias[:1].clone().requires_grad_()]
        wide = leaves[0].expand(4, 30)
        op(wide, leaves[1].expand(30), wide, 0.5, "silu", seed=6).sum().backward()
        results.append([leaf.grad for leaf in leaves])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("shape", [(64, 200), (3, 70_000), (9_000, 7), (200_000, 1), (40, 1_001)])
def test_results_do_not_depend_on_threads(shape: tuple[int, int], isa: str) -> None:
    operands = random_operands(shape, torch.float32)
    results = []
    for count in (1, 2, 3, 7):
        with threads(count):
            keys = {"p": 0.1, "activation": "silu", "seed": 9}
            results.append(with_gradients(bias_act_dropout_add, operands, **keys))
    for result in results[1:]:
        for a, b in zip(results[0], result, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(3, 900_001), (700_001, 3), (70_000, 40)])
def test_bias_gradient_of_large_tensors(shape: tuple[int, int], place: torch.device) -> None:
    """Slices that are shorter than a row, rows shorter than a block, many slices."""
    grad = torch.randint(-8, 9, shape).float()  # whose sums are exact
    bias = torch.zeros(shape[1], requires_grad=True)
    output = bias_act_dropout_add(torch.zeros(shape), bias, None, 0.5, convention="paper", seed=4)
    kept = fused_dropout.mask(grad.numel(), 0.5, seed=4).view(shape)
    (d_bias,) = torch.autograd.grad(output, bias, grad)
    assert torch.equal(d_bias, (grad * kept).sum(0))


@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 0), (2, 0, 5), (0, 3, 5), (0,)])
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_empty(shape: tuple[int, ...], activation: str, place: torch.device) -> None:
    before = generator_state(place)
    operands = random_operands(shape, torch.float32)
    ours = with_gradients(bias_act_dropout_add, operands, activation=activation)
    assert torch.equal(generator_state(place), before)
    for result, like in zip(ours, (*operands[:1], *operands[:3]), strict=True):
        assert torch.equal(result, torch.zeros_like(like))


def test_without_dimensions(place: torch.device) -> None:
    input = torch.tensor(0.5, requires_grad=True)
    output = bias_act_dropout_add(input, None, torch.tensor(2.0), 0.0, "silu")
    torch.testing.assert_close(output, F.silu(input) + 2)
    (slope,) = torch.autograd.grad(output, input)
    assert slope.shape == ()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_dropped_element_is_exactly_its_residual(
    activation: str, special: float, dtype: torch.dtype, backend: torch.device
) -> None:
    kept = fused_dropout.mask(5 * 70, 0.4, seed=2).view(5, 70)
    _, bias, residual, grad = random_operands((5, 70), dtype)
    input = torch.full((5, 70), special, dtype=dtype)
    leaves = [input.requires_grad_(), bias.requires_grad_()]
    output = bias_act_dropout_add(*leaves, residual, 0.4, activation, seed=2)
    assert torch.equal(output[~kept], residual[~kept])
    d_input, d_bias = torch.autograd.grad(output, leaves, grad)
    assert not d_input[~kept].any()
    whole_columns = ~kept.any(0)
    assert not d_bias[whole_columns].any()
    # A kept one is what torch makes of it, in float64: its float32 gelu(inf) is NaN on some CPUs.
    peer = input.detach().double().requires_grad_()
    own = reference.ACTIVATIONS[activation](peer + bias.detach())
    (slope,) = torch.autograd.grad(own.sum(), peer)
    assert torch.equal(output[kept].isnan(), own[kept].isnan())
    assert torch.equal(d_input[kept].isnan(), slope[kept].isnan())


def test_a_nan_s_gradient_goes_through_relu_as_torch_s(place: torch.device) -> None:
    input = torch.tensor([math.nan, -0.0, 0.0, 1.0, -1.0], requires_grad=True)
    output = bias_act_dropout_add(input, activation="relu", training=False)
    torch.testing.assert_close(output, F.relu(input), equal_nan=True)
    grads = [torch.autograd.grad(y.sum(), input)[0] for y in (output, F.relu(input))]
    assert torch.equal(*grads)


@pytest.mark.parametrize("stream", [torch.float32, torch.bfloat16], ids=str)
def test_autocast(stream: torch.dtype, place: torch.device) -> None:
    """A linear layer computes in bfloat16, biases and perhaps the residual stream stay float32."""
    linear, layer = torch.nn.Linear(6, 12, bias=False), BiasActDropoutAdd(12, 0.0, "gelu")
    residual = torch.ones(3, 12, dtype=stream)
    with torch.autocast(place.type, torch.bfloat16):
        up = linear(torch.ones(3, 6))
        output = layer(up, residual)
        expected = F.gelu(up) + residual
    assert up.dtype == torch.bfloat16
    assert output.dtype == expected.dtype
    torch.testing.assert_close(output, expected, rtol=1e-2, atol=1e-2)
    output.sum().backward()
    assert layer.bias.grad.dtype == linear.weight.grad.dtype == torch.float32


def test_never_returns_an_operand(place: torch.device) -> None:
    input, _, residual, _ = random_operands((3, 4), torch.float32)
    for training, p in ((True, 0.0), (True, 1.0), (False, 0.5)):
        output = bias_act_dropout_add(input, None, residual, p, training=training)
        assert output.data_ptr() not in (input.data_ptr(), residual.data_ptr())
