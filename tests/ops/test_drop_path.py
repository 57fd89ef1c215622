"""Stochastic depth against its definition on the reference's masks."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from support.devices import generator_state
from support.tensors import DTYPES
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from fused_dropout import reference
from fused_dropout._tools.memory import kept_for_backward
from fused_dropout.functional import (
    drop_path,
    drop_path_add,
    linear_drop_rates,
    stochastic_depth,
)
from fused_dropout.nn import DropPath, DropPathAdd, StochasticDepth

SHAPES = [(1,), (129,), (1, 1), (5, 127), (130, 3), (3, 129, 5), (33, 2, 4, 9), (2, 40_000)]


def kept_samples(input: Tensor, p: float, seed: int, mode: str = "row") -> Tensor:
    """The mask, in a shape that broadcasts over ``input``."""
    count = len(input) if mode == "row" else 1
    kept = reference.mask(count, p, seed=seed).to(input.device)
    return kept.reshape(count, *[1] * (input.dim() - 1))


def scaled(input: Tensor, p: float) -> Tensor:
    """``input / q`` as the kernels round it: one product in float32, or in float64."""
    real = torch.float64 if input.dtype == torch.float64 else torch.float32
    scale = torch.tensor(1 / reference.keep_rate(p), dtype=real)
    return (input.to(real) * scale).to(input.dtype)


@pytest.mark.parametrize("mode", ["row", "batch"])
@pytest.mark.parametrize("p", [0.5, 0.1, 0.97])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values(mode: str, p: float, dtype: torch.dtype, backend: torch.device) -> None:
    torch.manual_seed(0)
    for seed, shape in enumerate(SHAPES):
        input = torch.randn(shape).to(dtype)
        output = stochastic_depth(input, p, mode, seed=seed)
        expected = torch.where(kept_samples(input, p, seed, mode), scaled(input, p), 0)
        assert output.dtype == dtype
        assert torch.equal(output, expected)
        if mode == "row":
            assert torch.equal(drop_path(input, p, True, seed=seed), expected)


def test_unscaled(place: torch.device) -> None:
    input = torch.randn(300, 7)
    expected = torch.where(kept_samples(input, 0.3, 5), input, 0)
    assert torch.equal(drop_path(input, 0.3, True, False, seed=5), expected)
    output = drop_path_add(input, -input, 0.3, True, False, seed=5)
    assert torch.equal(output, torch.where(kept_samples(input, 0.3, 5), 0, input))


@pytest.mark.parametrize("p", [0.5, 0.1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sum_with_the_residual(p: float, dtype: torch.dtype, backend: torch.device) -> None:
    torch.manual_seed(1)
    for seed, shape in enumerate(SHAPES):
        x, branch = torch.randn(2, *shape).to(dtype)
        output = drop_path_add(x, branch, p, True, seed=seed)
        kept = kept_samples(x, p, seed)
        exact = x.double() + branch.double() / reference.keep_rate(p)
        # A rounding of the result, and in float32 one of the product and one of the scale.
        size = x.double().abs() + branch.double().abs() / reference.keep_rate(p)
        bound = 2 * torch.finfo(dtype).eps * size
        assert output.dtype == dtype
        assert torch.where(kept, (output - exact).abs() <= bound, output == x).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nothing_leaks_out_of_dropped_samples(bad: float, backend: torch.device) -> None:
    input = torch.full((200, 5), bad)
    kept = kept_samples(input, 0.5, 3).expand_as(input)
    output = drop_path(input, 0.5, True, seed=3)
    assert (output[~kept] == 0).all() and not output[kept].isfinite().any()
    x = torch.randn(200, 5)
    output = drop_path_add(x, input, 0.5, True, seed=3)
    assert torch.equal(output[~kept], x[~kept]) and not output[kept].isfinite().any()
    assert (drop_path(input, 1.0, True) == 0).all()
    assert torch.equal(drop_path_add(x, input, 1.0, True), x)


def views_of(tensor: Tensor) -> list[Tensor]:
    """The same [N, C, H, W] values in other orders of memory."""
    spread = torch.full((*tensor.shape[:-1], 2 * tensor.shape[-1]), math.nan)
    spread[..., ::2] = tensor
    return [
        tensor.contiguous(memory_format=torch.channels_last),
        tensor.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        spread[..., ::2],
        tensor[:1].expand(tensor.shape),
    ]


def test_strides_do_not_change_the_mask(backend: torch.device) -> None:
    torch.manual_seed(2)
    dense, x = torch.randn(2, 9, 3, 5, 4)
    for input in views_of(dense):
        expected = drop_path(input.contiguous(), 0.4, True, seed=1)
        output = drop_path(input, 0.4, True, seed=1)
        assert torch.equal(output, expected)
        assert output.stride() == torch.empty_like(input).stride()
        for other in (x, *views_of(x)):
            output = drop_path_add(other, input, 0.4, True, seed=1)
            expected = drop_path_add(other.contiguous(), input.contiguous(), 0.4, True, seed=1)
            assert torch.equal(output, expected)


@pytest.mark.parametrize("mode", ["row", "batch"])
def test_gradients(mode: str, place: torch.device) -> None:
    torch.manual_seed(3)
    input = torch.randn(6, 3, 2, dtype=torch.float64, requires_grad=True)

    def layer(input: Tensor) -> Tensor:
        return stochastic_depth(input, 0.4, mode, seed=4)

    assert layer(input).count_nonzero() > 0
    assert gradcheck(layer, input) and gradgradcheck(layer, input)


def test_gradients_of_the_sum(place: torch.device) -> None:
    torch.manual_seed(3)
    x, branch = (torch.randn(6, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))

    def layer(x: Tensor, branch: Tensor) -> Tensor:
        return drop_path_add(x, branch, 0.4, True, seed=5)

    assert gradcheck(layer, (x, branch)) and gradgradcheck(layer, (x, branch))
    grad = torch.randn(6, 5, dtype=torch.float64)
    to_x, to_branch = torch.autograd.grad(layer(x, branch), (x, branch), grad)
    assert to_x.data_ptr() == grad.data_ptr(), "the gradient of x is a copy"
    assert torch.equal(to_branch, drop_path(grad, 0.4, True, seed=5))


def test_backward_uses_the_forward_s_mask(backend: torch.device) -> None:
    input = torch.ones(4000, 3, requires_grad=True)
    output = drop_path(input, 0.3, True)
    assert 0 < output.count_nonzero() < output.numel()
    (grad,) = torch.autograd.grad(output.sum(), input)
    assert torch.equal(grad, output)


def test_only_the_random_state_is_kept_for_backward(place: torch.device) -> None:
    x, branch = (torch.randn(64, 100, requires_grad=True) for _ in range(2))
    kept = kept_for_backward(lambda: drop_path_add(x, branch, 0.3, True))
    assert [tensor.nbytes for tensor in kept] == [16]


def test_without_dropping(place: torch.device) -> None:
    input, branch = torch.randn(2, 5, 3)
    before = generator_state(place)
    assert stochastic_depth(input, 0.5, "row", training=False) is input
    assert stochastic_depth(input, 0.0, "batch") is input
    assert drop_path(input, 0.5) is input
    assert drop_path(input, 0.0, True) is input
    assert torch.equal(drop_path_add(input, branch, 0.5), input + branch)
    assert torch.equal(drop_path_add(input, branch, 0.0, True), input + branch)
    for mode in ("row", "batch"):
        assert torch.equal(stochastic_depth(input, 1.0, mode), torch.zeros(5, 3))
    assert torch.equal(drop_path_add(input, branch, 1.0, True), input)
    # p that rounds to 0: kept as it is
    assert torch.equal(drop_path(input, 1e-9, True), input)
    assert torch.equal(drop_path_add(input, branch, 1e-9, True), input + branch)
    assert torch.equal(generator_state(place), before), "something was drawn"


@pytest.mark.parametrize("shape", [(0,), (0, 3), (4, 0, 2)])
def test_empty(shape: tuple[int, ...], place: torch.device) -> None:
    input, x = torch.empty(shape, requires_grad=True), torch.empty(shape, requires_grad=True)
    for mode in ("row", "batch"):
        assert stochastic_depth(input, 0.5, mode).shape == shape
    output = drop_path_add(x, input, 0.5, True)
    assert output.shape == shape
    to_x, to_branch = torch.autograd.grad(output.sum(), (x, input))
    assert to_x.shape == to_branch.shape == shape


def test_without_dimensions(place: torch.device) -> None:
    """As the peers: samples need a dimension, a batch does not."""
    input = torch.tensor(2.0)
    for seed in range(8):
        kept = reference.mask(1, 0.5, seed=seed).item()
        assert stochastic_depth(input, 0.5, "batch", seed=seed).item() == (4.0 if kept else 0.0)
    assert drop_path(input, 0.5) is input
    calls = (stochastic_depth, (input, 0.5, "row")), (drop_path, (input, 0.5, True))
    for function, arguments in (*calls, (drop_path_add, (input, input, 0.5, True))):
        with pytest.raises(IndexError, match="without dimensions"):
            function(*arguments)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"p": 1.5}, ValueError, "has to be between 0 and 1, but got 1.5"),
        ({"p": -0.1}, ValueError, "but got -0.1"),
        ({"p": math.nan}, ValueError, "but got nan"),
        ({"p": "0.5"}, TypeError, "p must be a float, got str"),
        ({"mode": "column"}, ValueError, "mode must be one of 'batch', 'row', got 'column'"),
        ({"seed": 1, "generator": torch.Generator()}, ValueError, "generator and seed"),
        ({"input": [1.0]}, TypeError, "input must be a Tensor, got list"),
        ({"input": torch.ones(2, 3).long()}, RuntimeError, "input must have a dtype.*int64"),
        ({"input": torch.ones(2, 3).cfloat()}, RuntimeError, "input.*complex64"),
        ({"input": torch.ones(2, 3).to_sparse()}, RuntimeError, "input must be a dense"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        stochastic_depth(**{"input": torch.ones(2, 3), "p": 0.5, "mode": "row", **change})


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"drop_prob": 2}, ValueError, "drop_prob.*but got 2"),
        ({"drop_prob": None}, TypeError, "drop_prob must be a float, got NoneType"),
        ({"branch": torch.ones(2, 1)}, RuntimeError, r"branch must have shape \[2, 3\], got"),
        ({"branch": torch.ones(2, 3, device="meta")}, RuntimeError, "branch must be on.*got meta"),
        ({"branch": 1.0}, TypeError, "branch must be a Tensor, got float"),
        ({"x": None}, TypeError, "x must be a Tensor, got NoneType"),
    ],
)
def test_bad_operands_of_the_sum(change: dict, error: type[Exception], text: str) -> None:
    good = {"x": torch.ones(2, 3), "branch": torch.ones(2, 3), "drop_prob": 0.5}
    with pytest.raises(error, match=text):
        drop_path_add(**{**good, **change}, training=True)


def test_two_dtypes_are_added_as_plus_does(place: torch.device) -> None:
    """Under autocast the branch is in half precision and x is not."""
    x, branch = torch.randn(50, 4, requires_grad=True), torch.randn(50, 4).bfloat16()
    branch.requires_grad_()
    output = drop_path_add(x, branch, 0.5, True, seed=9)
    assert output.dtype == torch.float32
    assert torch.equal(output, x + drop_path(branch, 0.5, True, seed=9))
    grads = torch.autograd.grad(output.sum(), (x, branch))
    assert [grad.dtype for grad in grads] == [torch.float32, torch.bfloat16]


def test_a_branch_of_a_wider_dtype(place: torch.device) -> None:
    """The sum has the dtype of the branch, and every gradient that of its operand."""
    for narrow, wide in ((torch.bfloat16, torch.float32), (torch.float32, torch.float64)):
        x = torch.randn(50, 4, dtype=torch.float64).to(narrow).requires_grad_()
        branch = torch.randn(50, 4, dtype=torch.float64).to(wide).requires_grad_()
        output = drop_path_add(x, branch, 0.5, True, seed=9)
        assert output.dtype == wide
        expected = x + drop_path(branch, 0.5, True, seed=9)
        assert torch.equal(output, expected)
        weights = torch.randn(50, 4, dtype=wide)
        grads = torch.autograd.grad(output, (x, branch), weights)
        own = torch.autograd.grad(expected, (x, branch), weights)
        for grad, wanted, operand in zip(grads, own, (x, branch), strict=True):
            assert grad.dtype == operand.dtype
            assert torch.equal(grad, wanted)


def normal_scores(kept: Tensor, q: float) -> list[float]:
    """Standard normal, if samples are kept independently with probability q."""
    deviation = kept.double() - q
    count, variance = len(kept), q * (1 - q)
    rate = deviation.sum() / math.sqrt(count * variance)
    lags = (1, 2, 31, 32, 64, 127, 128, 129, 4096)
    pairs = [
        (deviation[lag:] * deviation[:-lag]).sum() / (variance * math.sqrt(count - lag))
        for lag in lags
    ]
    return [score.item() for score in (rate, *pairs)]


@pytest.mark.parametrize("p", [0.5, 0.1])
def test_statistics(p: float, backend: torch.device) -> None:
    """The rate; samples near and far, and two calls, do not depend on each other.

    |z| < 6 fails by chance with probability 2e-9 for each of 11 scores.
    """
    torch.manual_seed(10)
    q = reference.keep_rate(p)
    input = torch.ones(1_000_000, 1)
    first, second = (drop_path(input, p, True).flatten() != 0 for _ in range(2))
    scores = normal_scores(first, q)
    between = ((first.double() - q) * (second.double() - q)).sum()
    scores.append(between.item() / (q * (1 - q) * math.sqrt(len(first))))
    assert max(map(abs, scores)) < 6, scores


def test_statistics_of_whole_batches(place: torch.device) -> None:
    """|z| < 6 fails by chance with probability 2e-9."""
    torch.manual_seed(11)
    outputs = [stochastic_depth(torch.ones(3, 2), 0.25, "batch") for _ in range(2000)]
    kept = torch.stack([output.count_nonzero() for output in outputs])
    assert set(kept.tolist()) == {0, 6}
    z = ((kept == 6).sum().item() - 1500) / math.sqrt(2000 * 0.25 * 0.75)
    assert abs(z) < 6


LAYERS = [StochasticDepth(0.2, "row"), DropPath(0.2), DropPathAdd(0.2, scale_by_keep=False)]


def test_repr() -> None:
    """Those of torchvision and timm, with our name."""
    assert repr(StochasticDepth(0.2, "row")) == "fused_dropout.nn.StochasticDepth(p=0.2, mode=row)"
    assert repr(DropPath(0.1)) == "fused_dropout.nn.DropPath(drop_prob=0.100)"
    assert repr(DropPath()) == "fused_dropout.nn.DropPath(drop_prob=0.000)"
    assert repr(DropPathAdd(1 / 3)) == "fused_dropout.nn.DropPathAdd(drop_prob=0.333)"


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_work_alike(layer: torch.nn.Module, clone: Any) -> None:
    other = clone(layer)
    assert repr(other) == repr(layer) and not other.state_dict()
    inputs = [torch.randn(50, 3)] * (2 if isinstance(layer, DropPathAdd) else 1)
    torch.manual_seed(13)
    expected = layer(*inputs)
    torch.manual_seed(13)
    assert torch.equal(other(*inputs), expected)
    other.eval()
    assert torch.equal(other(*inputs), sum(inputs))


def test_modules_refuse_bad_parameters() -> None:
    with pytest.raises(ValueError, match="mode must be one of"):
        StochasticDepth(0.5, "rows")
    with pytest.raises(ValueError, match=r"but got 1\.1"):
        StochasticDepth(1.1, "row")
    for layer in (DropPath, DropPathAdd):
        with pytest.raises(ValueError, match=r"drop_prob.*but got -1"):
            layer(-1)
        with pytest.raises(TypeError, match="drop_prob must be a float"):
            layer("0.1")


def test_linear_drop_rates() -> None:
    assert linear_drop_rates(0.3, 4) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    for depth in (1, 2, 12, 24):
        rates = linear_drop_rates(0.1, depth)
        assert rates[0] == 0 and rates[-1] == (0.1 if depth > 1 else 0)
        assert rates == pytest.approx(torch.linspace(0, 0.1, depth).tolist(), rel=1e-6)
    assert linear_drop_rates(0.5, 0) == []
    with pytest.raises(ValueError, match=r"drop_rate.*but got 2"):
        linear_drop_rates(2.0, 4)
    with pytest.raises(ValueError, match="depth must be in"):
        linear_drop_rates(0.5, -1)
    with pytest.raises(TypeError, match="depth must be an int"):
        linear_drop_rates(0.5, 2.5)
