"""dropconnect_linear with masks that many rows share, which torch's matrix product computes."""

from __future__ import annotations

import math

import pytest
import torch
from support.accuracy import is_accurate, own_and_truth
from support.devices import threads
from support.dropconnect import random_operands
from support.tensors import DTYPES, relative_error, with_gradients
from torch import Tensor
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import fused_dropout
from fused_dropout import reference
from fused_dropout._core import extension
from fused_dropout._tools.memory import peak_extra_bytes
from fused_dropout.functional import dropconnect_linear, mask_weight

ENOUGH = 24  # rows to a mask, for every instruction set and dtype
FEWEST = {"avx512": 24, "avx2": 8, "plain": 2}  # for float32
NAMES = ("output", "d_input", "d_weight", "d_bias")

# (input shape, out_features, mask): the last mask has fewer rows; several masks at a time; parts of
# sums, tiles of output features and of columns; one mask, of which d_weight is made in place.
LAYERS = (
    ((64, 100), 20, 32),
    ((70, 129), 33, 30),
    ((3, 40, 300), 70, "example"),
    ((50, 1000), 17, "batch"),
    ((100, 64), 64, 25),
    ((140, 8200), 3, "batch"),
    ((140, 3), 8200, "batch"),
    ((48, 300), 1000, 24),
    ((600, 200), 9, 300),
    ((1100, 1030), 4, "batch"),
)


# Large enough for products on a GPU, too.
LARGE_LAYERS = (
    ((512, 512), 132, 128),
    ((3, 130, 700), 130, "example"),
    ((300, 1000), 128, "batch"),
)


def products_of(operands: tuple[Tensor, ...], **keywords: object) -> set[str]:
    """torch's matrix products in a forward and backward pass."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        with_gradients(dropconnect_linear, operands, **keywords)
    return {event.name for event in profiled.events()} & {"aten::mm", "aten::bmm"}


def check_against_reference(operands: tuple[Tensor, ...], **keywords: object) -> None:
    """As accurate as the reference, or as torch's product of these shapes.

    The library's product may add thousands of floats one after the other (MKL's on processors by
    AMD does); the reference's, of one row at a time, does not.
    """
    dense = [relative_error(a, b) for a, b in zip(*own_and_truth(F.linear, operands), strict=True)]
    ours = with_gradients(dropconnect_linear, operands, **keywords)
    keywords.pop("mask_storage", None)
    own, truth = own_and_truth(reference.dropconnect_linear, operands, **keywords)
    for name, a, b, t, error in zip(NAMES, ours, own, truth, dense, strict=True):
        assert is_accurate(a, b, t, other_error=error), f"{name} of {keywords}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "outs", "mask"), LAYERS)
def test_matches_reference(
    shape: tuple[int, ...], outs: int, mask: str | int, dtype: torch.dtype, isa: str
) -> None:
    operands = random_operands(shape, outs, dtype)
    assert products_of(operands, mask=mask)
    for p, storage in ((0.5, "regenerate"), (0.3, "packed")):
        check_against_reference(operands, p=p, mask=mask, seed=7, mask_storage=storage)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "outs", "mask"), LARGE_LAYERS)
def test_large_layers_match_the_reference(
    shape: tuple[int, ...], outs: int, mask: str | int, dtype: torch.dtype, place: torch.device
) -> None:
    operands = random_operands(shape, outs, dtype)
    assert products_of(operands, mask=mask)
    check_against_reference(operands, p=0.3, mask=mask, seed=7)


def test_special_values_in_a_large_layer(place: torch.device) -> None:
    """Only kept products are special, whatever the product of the others would be."""
    (rows, ins), outs, mask = LARGE_LAYERS[0]
    kept = fused_dropout.mask((rows // mask * outs, ins), 0.5, seed=3).view(-1, outs, ins)
    input, weight, _, grad = random_operands((rows, ins), outs, torch.float32)
    input[5, 7], input[130, 500], grad[9, 11], grad[511, 0] = math.inf, math.nan, math.nan, math.inf
    leaves = [input.requires_grad_(), weight.requires_grad_()]
    output = dropconnect_linear(*leaves, None, 0.5, mask=mask, seed=3)
    d_input, d_weight = torch.autograd.grad(output, leaves, grad)
    of_output, of_d_input = (
        torch.zeros_like(output, dtype=bool),
        torch.zeros_like(input, dtype=bool),
    )
    of_output[5], of_output[130] = kept[0, :, 7], kept[1, :, 500]
    of_d_input[9], of_d_input[511] = kept[0, 11], kept[3, 0]
    of_d_weight = torch.zeros_like(weight, dtype=bool)
    of_d_weight[:, 7], of_d_weight[:, 500] = kept[0, :, 7], kept[1, :, 500]
    of_d_weight[11] |= kept[0, 11]
    of_d_weight[0] |= kept[3, 0]
    assert torch.equal(~output.isfinite(), of_output)
    assert torch.equal(~d_input.isfinite(), of_d_input)
    assert torch.equal(~d_weight.isfinite(), of_d_weight)


def test_both_sides_of_the_rule(isa: str) -> None:
    """The kernels below the fewest rows, torch's products from there on; the same numbers."""
    fewest = FEWEST[isa]
    for rows in range(max(1, fewest - 1), fewest + 2):
        operands = random_operands((3 * rows + 1, 200), 100, torch.float32)
        assert bool(products_of(operands, mask=rows)) == (rows >= fewest)
        check_against_reference(operands, mask=rows, seed=rows)


def test_a_small_layer_calls_no_product(isa: str) -> None:
    assert not products_of(random_operands((ENOUGH, 10), 9, torch.float32), mask="batch")


@pytest.mark.parametrize("storage", ["regenerate", "packed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masks_are_the_contract_s(dtype: torch.dtype, storage: str, isa: str) -> None:
    """With one-hot rows the output is the masked weight, bit for bit: row i shows column i."""
    ins, outs, masks = 140, 30, 3
    weight = torch.randn(outs, ins).to(dtype)
    rows = torch.eye(ins, dtype=dtype).repeat(masks, 1)
    kept = fused_dropout.mask((masks * outs, ins), 0.25, seed=4).view(masks, outs, ins)
    keywords = {"mask": ins, "seed": 4, "mask_storage": storage, "convention": "paper"}
    output = dropconnect_linear(rows.requires_grad_(), weight, None, 0.25, **keywords)
    expected = torch.where(kept, weight, 0).mT.reshape(-1, outs)
    assert torch.equal(output, expected)
    # Backward as well: of a one-hot gradient, d_input is a row of the masked weight.
    row, out = 2 * ins + 7, 11
    grad = torch.zeros_like(output)
    grad[row, out] = 1
    (d_input,) = torch.autograd.grad(output, rows, grad)
    assert torch.equal(d_input[row], torch.where(kept[2, out], weight[out], 0))
    assert not d_input[:row].any() and not d_input[row + 1 :].any()


def test_is_a_linear_layer_of_masked_weights(isa: str) -> None:
    input, weight, _, grad = random_operands((64, 200), 100, torch.float64)
    stack = mask_weight(weight.requires_grad_(), 0.3, masks=2, seed=5)
    layers = torch.cat(
        [torch.nn.functional.linear(x, w) for x, w in zip(input.split(32), stack, strict=True)]
    )
    output = dropconnect_linear(input, weight, None, 0.3, mask=32, seed=5)
    torch.testing.assert_close(output, layers)
    ours, theirs = (torch.autograd.grad(y, weight, grad)[0] for y in (output, layers))
    torch.testing.assert_close(ours, theirs)


def _strided(tensor: Tensor) -> Tensor:
    spread = torch.full([2 * n for n in tensor.shape], math.nan, dtype=tensor.dtype)
    return spread[tuple(slice(1, None, 2) for _ in tensor.shape)].copy_(tensor)


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.t().contiguous().t() if tensor.dim() == 2 else tensor


def _repeated(tensor: Tensor) -> Tensor:
    return tensor[..., :1].expand(tensor.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("view", [_strided, _transposed, _repeated])
@pytest.mark.parametrize("mask", [30, "batch"])
def test_any_strides(view: object, mask: str | int, dtype: torch.dtype) -> None:
    assert callable(view)
    operands = random_operands((70, 131), 40, dtype)
    # Sums of equal numbers would have errors that do not cancel: the weight is not repeated.
    kept = (1, 2) if view is _repeated else ()
    operands = tuple(t if k in kept else view(t) for k, t in enumerate(operands))
    assert products_of(operands, mask=mask)
    check_against_reference(operands, p=0.3, mask=mask, seed=2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_a_dropped_product_adds_nothing(dtype: torch.dtype, special: float, isa: str) -> None:
    """Neither where the input nor where the gradient is not finite: 0 * NaN is never formed."""
    rows, ins, outs = 60, 140, 40
    kept = fused_dropout.mask((2 * outs, ins), 0.5, seed=2).view(2, outs, ins)
    which = torch.arange(rows) // 30
    input = torch.ones(rows, ins, dtype=dtype)
    weight = torch.ones(outs, ins, dtype=dtype)
    for layout in (lambda t: t, _strided, _transposed):
        spoilt = input.clone()
        spoilt[44, 131] = special
        output = dropconnect_linear(layout(spoilt), weight, None, 0.5, mask=30, seed=2)
        expected = torch.ones(rows, outs, dtype=torch.bool)
        expected[44] = ~kept[1, :, 131]
        assert torch.equal(output.isfinite(), expected)

        grad = torch.ones(rows, outs, dtype=dtype)
        grad[7, 33] = special
        leaves = [input.clone().requires_grad_(), weight.clone().requires_grad_()]
        d_input, d_weight = torch.autograd.grad(
            dropconnect_linear(*leaves, None, 0.5, mask=30, seed=2), leaves, layout(grad)
        )
        finite = torch.ones(rows, ins, dtype=torch.bool)
        finite[7] = ~kept[which[7], 33]
        assert torch.equal(d_input.isfinite(), finite)
        assert torch.equal(d_weight[33].isfinite(), ~kept[0, 33])
        assert d_weight[torch.arange(outs) != 33].isfinite().all()


def test_a_dropped_weight_is_nothing(isa: str) -> None:
    kept = fused_dropout.mask((100, 200), 0.5, seed=2)
    weight = torch.where(kept, 1.0, math.nan)
    input = torch.ones(40, 200)
    output = dropconnect_linear(input, weight, None, 0.5, mask="batch", seed=2)
    assert torch.equal(output[3], 2.0 * kept.sum(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_any_number_of_threads(dtype: torch.dtype) -> None:
    """Their number may change the last bits, not more."""
    operands = random_operands((200, 300), 150, dtype)
    for count in (1, 2, 3):
        with threads(count):
            for mask in (50, "batch"):
                check_against_reference(operands, p=0.3, mask=mask, seed=9)


@pytest.mark.parametrize("mask", [26, "batch"])
def test_gradients_of_gradients(mask: str | int, isa: str) -> None:
    operands = random_operands((60, 40), 36, torch.float64)
    leaves = [tensor.requires_grad_() for tensor in operands[:3]]

    def layer(*tensors: Tensor) -> Tensor:
        return dropconnect_linear(*tensors, p=0.4, mask=mask, seed=3)

    assert torch.autograd.gradcheck(layer, leaves, fast_mode=True)
    assert torch.autograd.gradgradcheck(layer, leaves, fast_mode=True)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_one_gradient_is_that_of_both(wanted: tuple[bool, bool]) -> None:
    input, weight, _, grad = random_operands((64, 150), 50, torch.float32)
    both = [t.clone().requires_grad_() for t in (input, weight)]
    full = torch.autograd.grad(dropconnect_linear(*both, mask=32, seed=1), both, grad)
    leaves = [t.clone().requires_grad_(w) for t, w in zip((input, weight), wanted, strict=True)]
    dropconnect_linear(*leaves, mask=32, seed=1).backward(grad)
    for leaf, expected in zip(leaves, full, strict=True):
        assert leaf.grad is None or torch.equal(leaf.grad, expected)


def test_torch_s_products_inside_are_not_seen_outside() -> None:
    """Autocast, FLOP counters, inference mode and transforms see one operator."""
    input, weight, bias, grad = random_operands((64, 100), 40, torch.float32)
    leaves = [tensor.clone().requires_grad_() for tensor in (input, weight, bias)]
    with FlopCounterMode(display=False) as counter:
        dropconnect_linear(*leaves, mask=32, seed=1).backward(grad)
    assert counter.get_total_flops() == 3 * 2 * 64 * 100 * 40

    expected = dropconnect_linear(input, weight, bias, mask=32, seed=1)
    with torch.inference_mode():
        assert torch.equal(dropconnect_linear(input, weight, bias, mask=32, seed=1), expected)
    halves = [tensor.bfloat16() for tensor in (input, weight, bias)]
    with torch.autocast("cpu", torch.bfloat16):
        casted = dropconnect_linear(*leaves, mask=32, seed=1)
    assert torch.equal(casted, dropconnect_linear(*halves, mask=32, seed=1))

    def layer(x: Tensor) -> Tensor:
        return dropconnect_linear(x, weight, bias, mask=32, seed=1)

    batch = torch.stack([input, 2 * input])
    torch.testing.assert_close(torch.vmap(layer)(batch), torch.stack([layer(x) for x in batch]))
    output, tangent = torch.func.jvp(layer, (input,), (input,))
    torch.testing.assert_close(output, expected)
    no_bias = dropconnect_linear(input, weight, None, mask=32, seed=1)
    torch.testing.assert_close(tangent, no_bias)


def test_memory_is_bounded() -> None:
    """A layer of 64 MiB of weights: beside the results, buffers of 4 MiB and what the library's
    product packs."""
    input, weight, _, grad = random_operands((64, 4096), 4096, torch.float32)
    leaves = [input.requires_grad_(), weight.requires_grad_()]

    def run(mask: str | int) -> object:
        output = dropconnect_linear(*leaves, mask=mask, seed=1)
        return output, torch.autograd.grad(output, leaves, grad)

    for mask in ("batch", 32):
        run(mask)
        results = 4 * (grad.numel() + input.numel() + weight.numel())
        extra = peak_extra_bytes(lambda: run(mask))  # noqa: B023
        if extra is None:
            pytest.skip("the peak of resident memory cannot be read here")
        assert extra - results < 24 << 20


def test_the_rule_is_known_for_every_instruction_set() -> None:
    assert set(extension.available_isas()) <= FEWEST.keys()
