"""Dtypes and memory layouts: results are those of dense tensors, and as close as torch's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_calls import (
    SEED,
    assert_same_bits,
    call_of,
    direction_like,
    each_op,
    operands_of,
    reference_of,
    results,
)
from torch import Tensor

from fused_dropout._tools.table import DTYPES, Op
from fused_dropout._tools.verify.errors import error_bound, error_ratio

# The largest error, in units in the last place of the largest value, that sums may add to torch's.
FLOOR_ULPS = 8


@each_op("dtypes")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(op: Op, dtype: torch.dtype, place: torch.device) -> None:
    """Output and gradients have the dtype of what they belong to."""
    operands = operands_of(op, dtype)
    leaves = [operand.requires_grad_() for operand in operands]
    wide = [operand.detach().double().requires_grad_() for operand in operands]
    ours, own = results(call_of(op), leaves), results(reference_of(op), leaves)
    for one, torchs, truth in zip(ours, own, results(reference_of(op), wide), strict=True):
        bound = error_bound([torchs], truth, FLOOR_ULPS)
        assert error_ratio(one, truth, bound, dtype) <= 1


def reversed_dimensions(tensor: Tensor) -> Tensor:
    order = tuple(reversed(range(tensor.dim())))
    return tensor.permute(order).contiguous().permute(order)


def channels_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(1, -1).contiguous().movedim(-1, 1) if tensor.dim() > 2 else tensor


def with_gaps(tensor: Tensor) -> Tensor:
    """Every other element of memory, from an odd offset on."""
    spread = torch.full((*tensor.shape, 2), torch.nan, dtype=tensor.dtype)
    spread[..., 1] = tensor
    return spread[..., 1]


def misaligned(tensor: Tensor) -> Tensor:
    """One element past what vectors are aligned to."""
    memory = torch.full((tensor.numel() + 1,), torch.nan, dtype=tensor.dtype)
    memory[1:] = tensor.flatten()
    return memory[1:].view(tensor.shape)


def negated_view(tensor: Tensor) -> Tensor:
    """With the negative bit set."""
    view = torch.complex(torch.zeros_like(tensor), -tensor).conj().imag
    assert view.is_neg()
    return view


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "reversed": reversed_dimensions,
    "channels_last": channels_last,
    "gaps": with_gaps,
    "misaligned": misaligned,
    "negative bit": negated_view,
}


def results_as_given(op: Op, operands: list[Tensor]) -> list[Tensor]:
    """Output and gradients for operands whose layout a leaf would not keep."""
    leaves = [operand.detach().requires_grad_() for operand in operands]
    return results(call_of(op), leaves)


@each_op("strides")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_layouts(op: Op, layout: str, dtype: torch.dtype, place: torch.device) -> None:
    """Of each operand alone, and of all."""
    dense = operands_of(op, dtype)
    wanted = results_as_given(op, dense)
    arranged = [LAYOUTS[layout](operand) for operand in dense]
    variants = [[*dense[:k], arranged[k], *dense[k + 1 :]] for k in range(len(dense))]
    for operands in (*variants, arranged):
        assert_same_bits(results_as_given(op, operands), wanted)


@each_op("strides")
def test_expanded_operands(op: Op, place: torch.device) -> None:
    """Each operand repeats its first row without memory of its own."""
    for position in range(len(op.operand_names)):
        operands = operands_of(op)
        whole = operands[position].shape
        operands[position] = operands[position][:1].expand(whole)
        wanted = list(operands)
        wanted[position] = operands[position].contiguous()
        assert_same_bits([call_of(op)(*operands)], [call_of(op)(*wanted)])


@each_op("strides")
def test_gradients_of_any_layout(op: Op, place: torch.device) -> None:
    """Backward gets an expanded gradient from sum(), and what else its callers make."""
    operands = [operand.requires_grad_() for operand in operands_of(op)]
    output = call_of(op)(*operands)
    given = direction_like(output)
    wanted = torch.autograd.grad(output, operands, given, retain_graph=True)
    for arrange in LAYOUTS.values():
        ours = torch.autograd.grad(output, operands, arrange(given), retain_graph=True)
        assert_same_bits(ours, wanted)
    one = torch.ones((), dtype=output.dtype).expand(output.shape)
    wanted = torch.autograd.grad(output, operands, one.contiguous(), retain_graph=True)
    assert_same_bits(torch.autograd.grad(output, operands, one), wanted)


@each_op("in place")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_in_place(op: Op, layout: str, dtype: torch.dtype, place: torch.device) -> None:
    """The bits of the call that makes a new tensor, and nothing else is written to."""
    (operand,) = operands_of(op, dtype)
    wanted = call_of(op)(operand)
    view = LAYOUTS[layout](operand)
    memory = torch.empty(0, dtype=dtype).set_(view.untyped_storage())
    outside = memory.isnan().sum()
    changed = call_of(op)(view, inplace=True)
    assert changed is view
    assert_same_bits([view], [wanted])
    assert torch.equal(memory.isnan().sum(), outside)


@each_op("in place")
def test_in_place_on_overlapping_memory(op: Op, place: torch.device) -> None:
    """As torch's in-place operators: an error, and nothing is written."""
    (operand,) = operands_of(op)
    overlapping = operand[:1].expand(operand.shape)
    before = overlapping.clone()
    with pytest.raises(RuntimeError, match="single memory location"):
        call_of(op)(overlapping, inplace=True)
    assert_same_bits([overlapping], [before])


@each_op("in place")
def test_in_place_with_gradients(op: Op, place: torch.device) -> None:
    """Leaves and their views are refused before they are written to; what follows them is not."""
    (operand,) = operands_of(op)
    leaf = operand.clone().requires_grad_()
    for refused in (leaf, leaf.view(-1).view(leaf.shape)):
        with pytest.raises(RuntimeError, match="leaf"):
            call_of(op)(refused, inplace=True)
        assert_same_bits([leaf.detach()], [operand])
    view_of_result = (leaf * 1).view(leaf.shape)
    output = call_of(op)(view_of_result, inplace=True)
    (ours,) = torch.autograd.grad(output, leaf, direction_like(output))
    assert_same_bits([ours], results(call_of(op), [leaf])[1:])
    changed = (leaf * 1).square()
    squared = changed.square()
    call_of(op, seed=SEED)(changed, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.sum().backward()
    constant = operand.clone()
    product = leaf * constant
    call_of(op)(constant, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
