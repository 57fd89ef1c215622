"""Gaussian dropout: values, gradients, layouts, random sources, statistics, its module."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from support.devices import threads
from support.noise_checks import (
    SIZES,
    assert_rounded,
    check_independent,
    check_mean,
    check_neighbours,
    check_normal,
    layouts,
)
from support.tensors import DTYPES, random_tensor
from torch import Tensor

import fused_dropout
from fused_dropout._core import extension
from fused_dropout._tools.memory import kept_for_backward
from fused_dropout.functional import gaussian_dropout
from fused_dropout.nn import GaussianDropout
from fused_dropout.reference import _noise as reference

LARGE = 1 << 18


def noise_of(z: Tensor, p: float) -> Tensor:
    return 1 + math.sqrt(p / (1 - p)) * z


def check_values(input: Tensor, output: Tensor, p: float, seed: int) -> None:
    """`output` is Gaussian dropout of `input` but for rounding."""
    assert (output.dtype, output.shape, output.device) == (input.dtype, input.shape, input.device)
    z = reference.normal_noise(input.shape, seed=seed, device=input.device)
    truth = reference.gaussian_dropout(input.double(), p, seed=seed)
    # Where 1 + sigma z is next to 0, its error is that of the two.
    scale = input.double().abs() * (1 + math.sqrt(p / (1 - p)) * z.abs())
    assert_rounded(output, truth, scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [0.5, 0.1, 0.97])
def test_matches_the_reference(p: float, dtype: torch.dtype, backend: torch.device) -> None:
    for size in SIZES:
        input = random_tensor((size,), dtype=dtype).requires_grad_()
        grad = random_tensor((size,), dtype=dtype, seed=1)
        output = gaussian_dropout(input, p, seed=7)
        check_values(input.detach(), output.detach(), p, 7)
        (d_input,) = torch.autograd.grad(output, input, grad)
        check_values(grad, d_input, p, 7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["channels_last", "reversed", "gaps", "misaligned"])
def test_layouts(layout: str, dtype: torch.dtype, backend: torch.device) -> None:
    """The noise is that of the logical index; strides are those of torch's own results."""
    dense = random_tensor((3, 5, 7, 9), dtype=dtype)
    expected = gaussian_dropout(dense, 0.3, seed=2)
    view = layouts(dense)[layout].requires_grad_()
    output = gaussian_dropout(view, 0.3, seed=2)
    assert torch.equal(output, expected)
    assert output.stride() == torch.empty_like(view).stride()
    (d_input,) = torch.autograd.grad(output, view, dense)
    assert torch.equal(d_input, expected)


@pytest.mark.parametrize("layout", ["channels_last", "gaps"])
def test_in_place(layout: str, backend: torch.device) -> None:
    dense = random_tensor((3, 5, 7, 9))
    expected = gaussian_dropout(dense, 0.3, seed=2)
    for view in (dense.clone(), layouts(dense)[layout]):
        assert gaussian_dropout(view, 0.3, inplace=True, seed=2) is view
        assert torch.equal(view, expected)
    leaf = dense.clone().requires_grad_()
    output = gaussian_dropout(leaf * 2, 0.3, inplace=True, seed=2)
    (d_leaf,) = torch.autograd.grad(output, leaf, dense)
    torch.testing.assert_close(d_leaf, 2 * expected)
    with pytest.raises(RuntimeError, match="leaf Variable"):
        gaussian_dropout(leaf, inplace=True)
    with pytest.raises(RuntimeError, match="single memory location"):
        gaussian_dropout(torch.zeros(1).expand(5), inplace=True)


def test_expanded_input(place: torch.device) -> None:
    row = random_tensor((9,))
    assert torch.equal(
        gaussian_dropout(row.expand(5, 9), 0.5, seed=1),
        gaussian_dropout(row.repeat(5, 1), 0.5, seed=1),
    )


def test_keeps_16_bytes_for_backward(place: torch.device) -> None:
    input = torch.ones(1000, requires_grad=True)
    kept = kept_for_backward(lambda: gaussian_dropout(input))
    assert [tensor.nbytes for tensor in kept] == [16]


def test_nothing_to_do_returns_the_input(place: torch.device) -> None:
    input = torch.ones(5)
    before = torch.get_rng_state()
    for kwargs in ({"p": 0}, {"p": 0.0}, {"training": False}, {"training": False, "p": 0.9}):
        assert gaussian_dropout(input, **kwargs) is input
    empty = torch.ones(4, 0)
    assert gaussian_dropout(empty) is empty
    integers = torch.ones(5, dtype=torch.long)
    assert gaussian_dropout(integers, 0.5, False) is integers
    assert torch.equal(torch.get_rng_state(), before)
    assert gaussian_dropout(torch.tensor(2.0), seed=1).shape == ()


def test_special_values(backend: torch.device) -> None:
    """Nothing is dropped: what is not finite stays so, and its neighbours do not notice."""
    input = torch.ones(300)
    expected = gaussian_dropout(input, seed=4)
    input[[5, 130, 299]] = torch.tensor([math.nan, math.inf, -math.inf])
    output = gaussian_dropout(input, seed=4)
    assert output[5].isnan()
    assert output[[130, 299]].isinf().all()
    finite = input.isfinite()
    assert torch.equal(output[finite], expected[finite])


def test_results_do_not_depend_on_threads(isa: str) -> None:
    input = random_tensor((50_000,))
    output = gaussian_dropout(input, seed=1)
    for count in (1, 3, 7):
        with threads(count):
            assert torch.equal(gaussian_dropout(input, seed=1), output)


def test_backward_uses_the_forward_s_noise(place: torch.device) -> None:
    input = torch.ones(200, requires_grad=True)
    output = gaussian_dropout(input, 0.3)
    (d_input,) = torch.autograd.grad(output.sum(), input)
    assert torch.equal(d_input, output)


def test_statistics(backend: torch.device) -> None:
    """Noise of mean 1 and variance p / (1 - p), normal and independent; false alarm below 1e-4."""
    p = 0.2
    noise = gaussian_dropout(torch.ones(512, LARGE // 512), p, seed=5)
    check_mean(noise, 1, math.sqrt(p / (1 - p)))
    z = (noise.double() - 1) / math.sqrt(p / (1 - p))
    check_normal(z)
    check_neighbours(z)
    check_independent(z[:-1], z[1:])  # rows
    other = gaussian_dropout(torch.ones(512, LARGE // 512), p, seed=6).double()
    check_independent(z, (other - 1) / math.sqrt(p / (1 - p)))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"p": 1.0}, ValueError, r"p must be below 1 .* infinite"),
        ({"p": 1, "training": False}, ValueError, "p must be below 1"),
        ({"p": -0.1}, ValueError, "but got -0.1"),
        ({"p": math.nan}, ValueError, "but got nan"),
        ({"p": "0.5"}, TypeError, "p must be a float, got str"),
        ({"input": [1.0]}, TypeError, "input must be a Tensor, got list"),
        ({"input": torch.ones(3).long()}, RuntimeError, "input must have a dtype.*int64"),
        ({"input": torch.ones(3).cfloat()}, RuntimeError, "input.*complex64"),
        ({"input": torch.ones(3).to_sparse()}, RuntimeError, "input must be a dense"),
        ({"generator": 5}, TypeError, "generator must be a torch.Generator"),
        ({"rng_state": torch.zeros(2)}, ValueError, "got torch.float32"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        gaussian_dropout(**{"input": torch.ones(3), **change})


def test_raw_operator_never_crashes(place: torch.device) -> None:
    op = extension.operators().gaussian_dropout
    state = fused_dropout.make_rng_state(1)
    with pytest.raises(RuntimeError, match="sigma must be at least 0 and finite, got inf"):
        op(torch.ones(3), state, math.inf)
    with pytest.raises(RuntimeError, match="expected float32"):
        op(torch.ones(3).long(), state, 1.0)
    with pytest.raises(RuntimeError, match="rng_state must be"):
        op(torch.ones(3), state[:1], 1.0)


# ---- the module


def test_module(place: torch.device) -> None:
    layer = GaussianDropout(0.25)
    assert repr(layer) == "GaussianDropout(p=0.25, inplace=False)"
    assert not list(layer.parameters())
    input = random_tensor((4, 30))
    torch.manual_seed(1)
    output = layer(input)
    torch.manual_seed(1)
    assert torch.equal(output, gaussian_dropout(input, 0.25))
    assert layer.eval()(input) is input
    changed = input.clone()
    assert GaussianDropout(inplace=True)(changed) is changed
    assert not torch.equal(changed, input)
    with pytest.raises(ValueError, match="p must be below 1"):
        GaussianDropout(1.0)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_work_alike(clone, place: torch.device) -> None:
    layer = GaussianDropout(0.1, inplace=True)
    other = clone(layer)
    assert repr(other) == repr(layer)
    results = []
    for module in (layer, other):
        torch.manual_seed(1)
        results.append(module(torch.ones(30)))
    assert torch.equal(*results)
