"""A product with a dropped operand: values, gradients, what is kept, autocast, arguments."""

from __future__ import annotations

import pytest
import torch
from support.tensors import DTYPES, random_tensor, random_tensors
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fused_dropout
from fused_dropout import reference
from fused_dropout.functional import dropout, dropout_matmul


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_is_dropout_and_product(dtype: torch.dtype, place: torch.device) -> None:
    """The bits of the two by themselves, and of their gradients."""
    operands = random_tensors((2, 3, 40, 50), (2, 3, 50, 8), dtype=dtype)
    grad = random_tensor((2, 3, 40, 8), dtype, seed=2)
    ours, theirs = ([t.clone().requires_grad_() for t in operands] for _ in range(2))
    for p in (0.1, 0.5, 1.0):
        output = dropout_matmul(*ours, p, seed=3)
        expected = dropout(theirs[0], p, seed=3) @ theirs[1]
        assert torch.equal(output, expected)
        gradients = torch.autograd.grad(output, ours, grad)
        for a, b in zip(gradients, torch.autograd.grad(expected, theirs, grad), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("left", "right"),
    [((4, 5), (5, 3)), ((2, 4, 5), (5, 3)), ((4, 5), (2, 5, 3)), ((2, 1, 4, 5), (3, 5, 2))],
)
def test_leading_dimensions_broadcast(
    left: tuple[int, ...], right: tuple[int, ...], place: torch.device
) -> None:
    operands = [t.requires_grad_() for t in random_tensors(left, right, dtype=torch.float64)]

    def product(*operands: Tensor) -> Tensor:
        return dropout_matmul(*operands, 0.4, seed=1)

    expected = reference.dropout_matmul(*operands, 0.4, seed=1)
    assert torch.allclose(product(*operands), expected, rtol=1e-12)
    assert gradcheck(product, operands) and gradgradcheck(product, operands)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_only_the_gradient_asked_for(wanted: tuple[bool, bool], place: torch.device) -> None:
    pair = random_tensors((4, 5), (5, 3), dtype=torch.float32)
    leaves = [t.requires_grad_(w) for t, w in zip(pair, wanted, strict=True)]
    dropout_matmul(*leaves, 0.4, seed=1).sum().backward()
    assert [leaf.grad is not None for leaf in leaves] == list(wanted)


def test_no_dropped_copy_is_kept(place: torch.device) -> None:
    """Behind a softmax: its output, which is one tensor for both, the values and 16 bytes."""
    scores = random_tensor((3, 64, 64)).requires_grad_()
    value = random_tensor((3, 64, 8)).requires_grad_()
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        dropout_matmul(scores.softmax(-1), value, 0.1)
    assert sorted(kept.values()) == [16, value.nbytes, scores.nbytes]


def test_without_dropout(place: torch.device) -> None:
    left, right = random_tensors((4, 5), (5, 3), dtype=torch.float32)
    before = torch.random.get_rng_state()
    for p, training in ((0.3, False), (0.0, True), (1e-6, True)):
        assert torch.equal(dropout_matmul(left, right, p, training), left @ right)
    assert (dropout_matmul(left / 0, right, 1.0) == 0).all()
    assert dropout_matmul(left[:0], right, 0.5).shape == (0, 3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_autocast(place: torch.device) -> None:
    """As of a product: both operands in bfloat16, forward and backward; gradients as leaves are."""
    left, right = random_tensors((4, 50), (50, 3), dtype=torch.float32)
    leaves = left.requires_grad_(), right.bfloat16().requires_grad_()
    with torch.autocast(place.type, dtype=torch.bfloat16):
        output = dropout_matmul(*leaves, 0.3, seed=1)
    assert output.dtype == torch.bfloat16
    expected = dropout(left.bfloat16(), 0.3, seed=1) @ leaves[1]
    assert torch.equal(output, expected)
    gradients = torch.autograd.grad(output.sum(), leaves)
    assert [grad.dtype for grad in gradients] == [torch.float32, torch.bfloat16]
    with torch.autocast(place.type, dtype=torch.bfloat16):  # leaves float64 as it is
        assert dropout_matmul(left.double(), right.double(), 0.3).dtype == torch.float64


def test_wrong_arguments(place: torch.device) -> None:
    left, right = torch.zeros(4, 5), torch.zeros(5, 3)
    state = fused_dropout.make_rng_state(1)
    for error, message, call in (
        (ValueError, "p, the drop probability", lambda: dropout_matmul(left, right, -1)),
        (ValueError, "at most one", lambda: dropout_matmul(left, right, seed=1, rng_state=state)),
        (RuntimeError, "input and other must have shapes", lambda: dropout_matmul(left, left)),
        (RuntimeError, "input and other must have", lambda: dropout_matmul(left, right[:, 0])),
        (RuntimeError, "other must have the dtype", lambda: dropout_matmul(left, right.double())),
        (RuntimeError, "input must have a dtype", lambda: dropout_matmul(left.long(), right)),
        (TypeError, "other must be a Tensor", lambda: dropout_matmul(left, 3.0)),
    ):
        with pytest.raises(error, match=message):
            call()
