"""mask_weight: DropConnect's masks on a weight by itself."""

from __future__ import annotations

import math

import pytest
import torch
from support.accuracy import is_accurate, own_and_truth
from support.devices import threads
from support.tensors import DTYPES, random_tensors, with_gradients

import fused_dropout
from fused_dropout import reference
from fused_dropout._core import extension
from fused_dropout._tools.memory import kept_for_backward
from fused_dropout.functional import dropconnect_linear, mask_weight

# Vectors, matrices and the weights of convolutions; edges of groups, tiles (32 x 1024) and parts.
SHAPES = ((1,), (300,), (5, 128), (33, 129), (40, 1100), (6, 3, 5, 5), (2, 4, 40, 7))
MASKS = (None, 1, 3, 33)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(
    shape: tuple[int, ...], masks: int | None, dtype: torch.dtype, backend: torch.device
) -> None:
    result = shape if masks is None else (masks, *shape)
    operands = random_tensors(shape, result, dtype=dtype)
    for p in (0.5, 0.3):
        keywords = {"p": p, "masks": masks, "seed": 7}
        ours = with_gradients(mask_weight, operands, **keywords)
        own, truth = own_and_truth(reference.mask_weight, operands, **keywords)
        for name, a, b, t in zip(("output", "d_weight"), ours, own, truth, strict=True):
            assert is_accurate(a, b, t), name
        assert torch.equal(ours[0].cpu() != 0, truth[0] != 0)


def test_masks_are_dropconnect_s(backend: torch.device) -> None:
    """One-hot rows show a layer's masked weights, bit for bit."""
    weight = torch.randn(40, 130)
    rows = torch.eye(130)
    stack = mask_weight(weight, 0.3, masks=3, seed=5)
    layer = dropconnect_linear(rows.repeat(3, 1), weight, None, 0.3, mask=130, seed=5)
    torch.testing.assert_close(layer.view(3, 130, 40).mT, stack)
    assert torch.equal(layer.view(3, 130, 40).mT != 0, stack != 0)
    assert torch.equal(mask_weight(weight, 0.3, seed=5), stack[0])
    batch = dropconnect_linear(rows, weight, None, 0.3, mask="batch", seed=5)
    assert torch.equal((batch != 0).T, stack[0] != 0)


def test_a_vector_is_one_row(place: torch.device) -> None:
    vector = torch.randn(300)
    assert torch.equal(mask_weight(vector, seed=1), mask_weight(vector[None], seed=1)[0])
    kernel = torch.randn(8, 4, 3, 3)
    flat = mask_weight(kernel.flatten(1), masks=2, seed=1)
    assert torch.equal(mask_weight(kernel, masks=2, seed=1).flatten(2), flat)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("special", [math.nan, math.inf])
def test_what_is_dropped_is_zero(dtype: torch.dtype, special: float, backend: torch.device) -> None:
    kept = fused_dropout.mask((3 * 20, 200), 0.5, seed=2).view(3, 20, 200)
    weight = torch.full((20, 200), special, dtype=dtype).requires_grad_()
    output = mask_weight(weight, masks=3, seed=2)
    assert torch.equal(output == 0, ~kept)
    assert not output[kept].isfinite().any()
    grad = torch.where(kept, torch.ones((), dtype=dtype), special)
    (d_weight,) = torch.autograd.grad(output, weight, grad)
    assert torch.equal(d_weight, 2 * kept.sum(0).to(dtype))


@pytest.mark.parametrize("masks", [1, 40])
def test_any_strides_of_the_gradient(masks: int, backend: torch.device) -> None:
    weight = torch.randn(33, 140).requires_grad_()
    output = mask_weight(weight, 0.3, masks=masks, seed=1)
    grad = torch.randn(output.shape)
    (dense,) = torch.autograd.grad(output, weight, grad, retain_graph=True)
    spread = torch.full([2 * n for n in grad.shape], math.nan)[::2, 1::2, ::2].copy_(grad)
    for view in (spread, grad.permute(2, 0, 1).contiguous().permute(1, 2, 0)):
        (other,) = torch.autograd.grad(output, weight, view, retain_graph=True)
        assert torch.equal(other, dense)
    (of_sum,) = torch.autograd.grad(output.sum(), weight, retain_graph=True)
    (of_ones,) = torch.autograd.grad(output, weight, torch.ones_like(output))
    assert torch.equal(of_sum, of_ones)


@pytest.mark.parametrize("masks", [None, 2, 70])
def test_results_do_not_depend_on_threads(masks: int | None, isa: str) -> None:
    shape = (130, 300)
    result = shape if masks is None else (masks, *shape)
    operands = random_tensors(shape, result, dtype=torch.float32)
    with threads(1):
        alone = with_gradients(mask_weight, operands, p=0.3, masks=masks, seed=9)
    for count in (2, 3):
        with threads(count):
            together = with_gradients(mask_weight, operands, p=0.3, masks=masks, seed=9)
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("masks", [None, 0, 2])
@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (3, 4)])
def test_empty(shape: tuple[int, ...], masks: int | None, place: torch.device) -> None:
    weight = torch.randn(shape, requires_grad=True)
    output = mask_weight(weight, masks=masks)
    assert output.shape == (shape if masks is None else (masks, *shape))
    (d_weight,) = torch.autograd.grad(output.sum(), weight)
    assert d_weight.shape == shape
    assert masks != 0 or not d_weight.any()


def test_where_nothing_is_drawn(place: torch.device) -> None:
    weight = torch.randn(4, 6)
    q = reference.keep_rate(0.3)
    assert mask_weight(weight, 0.0) is weight
    assert mask_weight(weight, 0.3, False) is weight
    assert torch.equal(mask_weight(weight, 0.3, False, masks=2), weight.expand(2, 4, 6))
    paper = mask_weight(weight, 0.3, False, convention="paper")
    assert torch.equal(paper, weight * q)
    assert not mask_weight(weight, 1.0, masks=2).any()
    inverted = mask_weight(weight, 0.5, seed=3)
    assert torch.equal(mask_weight(weight, 0.5, seed=3, convention="paper") * 2, inverted)


def test_stores_bits_where_drawing_takes_longer(place: torch.device) -> None:
    """As dropconnect_linear: at one digit nothing but the random state is kept."""
    weight = torch.randn(64, 256).requires_grad_()
    sizes = [
        sorted(t.nbytes for t in kept_for_backward(lambda: mask_weight(weight, p, masks=2)))  # noqa: B023
        for p in (0.5, 0.3)
    ]
    assert sizes == [[16], [16, 2 * 64 * 256 // 8]]


def test_gradients_of_any_order(place: torch.device) -> None:
    weight = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda w: mask_weight(w, 0.4, masks=2, seed=3) ** 3, weight)


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((torch.ones(()),), {}, RuntimeError, "weight must have at least one dimension"),
        ((torch.ones(3, dtype=torch.int64),), {}, RuntimeError, "weight must have a dtype"),
        (([1.0],), {}, TypeError, "weight must be a Tensor"),
        ((torch.ones(3), 1.5), {}, ValueError, "has to be between 0 and 1"),
        ((torch.ones(3),), {"masks": -1}, ValueError, "masks must be at least 0, got -1"),
        ((torch.ones(3),), {"masks": 1.0}, TypeError, "masks must be an int, got float"),
        ((torch.ones(3),), {"masks": True}, TypeError, "masks must be an int, got bool"),
        ((torch.ones(3),), {"convention": "x"}, ValueError, "convention must be one of"),
        ((torch.ones(3),), {"seed": 1, "generator": torch.Generator()}, ValueError, "at most one"),
    ],
)
def test_bad_arguments(
    arguments: tuple[object, ...], keywords: dict[str, object], error: type, message: str
) -> None:
    with pytest.raises(error, match=message):
        mask_weight(*arguments, **keywords)  # type: ignore[arg-type]


def test_raw_operators_check_what_they_get() -> None:
    ops, state = extension.operators(), fused_dropout.make_rng_state(1)
    weight, stack = torch.ones(2, 3), torch.ones(4, 2, 3)
    with pytest.raises(RuntimeError, match="weight must be a matrix"):
        ops.mask_weight(stack, state, None, 0.5, 2, 1.0)
    for masks in (-1, 2**62):
        with pytest.raises(RuntimeError, match="masks must be at least 0"):
            ops.mask_weight(weight, state, None, 0.5, masks, 1.0)
    with pytest.raises(RuntimeError, match="stack must have shape"):
        ops.mask_weight_sum(stack, state, None, 0.5, 3, 1.0)
    bits = ops.dropconnect_mask_bits(weight, state, 3, 0.5)
    with pytest.raises(RuntimeError, match="mask_bits must be"):
        ops.mask_weight(weight, state, bits, 0.5, 4, 1.0)
