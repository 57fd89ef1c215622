"""The same seed gives the same masks on CPU and GPU, bit for bit; values agree within rounding.

The other test files run on both devices one after the other; here the two are compared.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from support.dropconnect import MODES, random_operands
from support.tensors import DTYPES, relative_error, with_gradients
from torch import Tensor

import fused_dropout
from fused_dropout import reference
from fused_dropout._core import extension
from fused_dropout.functional import dropconnect_linear

NAMES = ("output", "d_input", "d_weight", "d_bias")
PS = (0.5, 0.25, 0.1, 1e-9, 0.0, 1.0)
# Edges of words, groups and blocks of threads, and more groups than one launch has threads.
MASK_SHAPES = (
    (),
    (0,),
    (1,),
    (5, 0),
    (3, 31),
    (2, 3, 129),
    (65, 4097),
    (3, 1_000_003),
    (200_003, 33),
)


@pytest.mark.parametrize("p", PS)
@pytest.mark.parametrize("shape", MASK_SHAPES, ids=str)
def test_masks(cuda: torch.device, shape: tuple[int, ...], p: float) -> None:
    here = fused_dropout.mask(shape, p, seed=11)
    assert torch.equal(fused_dropout.mask(shape, p, seed=11, device=cuda).cpu(), here)
    here = fused_dropout.packed_mask(shape, p, seed=11)
    assert torch.equal(fused_dropout.packed_mask(shape, p, seed=11, device=cuda).cpu(), here)


@pytest.mark.parametrize("digits", [1, 8, 16, 32])
@pytest.mark.parametrize(
    ("seed", "offset", "stream"),
    [(0, 0, 0), (2**32 + 1, 2**32 + 4, 5), (-1, 2**63, 127), (2**64 - 1, 2**64 - 1, 1)],
)
def test_masks_of_any_state(
    cuda: torch.device, seed: int, offset: int, stream: int, digits: int
) -> None:
    keys = {"seed": seed, "offset": offset, "stream": stream, "digits": digits}
    here = fused_dropout.mask((7, 1000), 0.3, **keys)
    assert torch.equal(fused_dropout.mask((7, 1000), 0.3, **keys, device=cuda).cpu(), here)


@pytest.mark.parametrize("p", PS)
@pytest.mark.parametrize("sizes", [(0, 4, 9), (1, 1, 1), (5, 65, 260), (300, 17, 1100)], ids=str)
def test_stored_masks(cuda: torch.device, sizes: tuple[int, int, int], p: float) -> None:
    draw = extension.operators().dropconnect_mask_bits
    masks, weight, state = sizes[0], torch.empty(sizes[1:]), fused_dropout.make_rng_state(11, 5)
    here = draw(weight, state, masks, p)
    for place in (cuda, "cpu"):
        there = draw(weight.to(cuda), state.to(place), masks, p)
        assert torch.equal(there.cpu(), here)


@pytest.mark.parametrize("p", PS)
@pytest.mark.parametrize("rows_per_mask", [1, 3])
@pytest.mark.parametrize("sizes", [(0, 4, 9), (5, 65, 260), (200, 130, 600)], ids=str)
def test_masks_that_forward_leaves(
    cuda: torch.device, sizes: tuple[int, int, int], rows_per_mask: int, p: float
) -> None:
    rows, outs, ins = sizes
    forward = extension.operators().dropconnect_linear_with_bits
    operands = [torch.ones(shape) for shape in ((rows, ins), (outs, ins), (outs,))]
    state = fused_dropout.make_rng_state(11, 5)
    output, here = forward(*operands, state, p, rows_per_mask, 1.0)
    on_gpu, there = forward(*(t.to(cuda) for t in operands), state, p, rows_per_mask, 1.0)
    assert torch.equal(on_gpu.cpu(), output)  # counts
    assert torch.equal(there[:, :, :outs].cpu(), here[:, :, :outs])


class Probe(NamedTuple):
    """Where unit operands come through, if one of them is hot in a single place."""

    output: Tensor  # [rows, outs] of rows with one feature
    d_input: Tensor  # [rows, ins] of a gradient of one output feature
    d_weight: Tensor  # [outs, ins] of a gradient of one row
    d_bias: Tensor  # [outs], likewise


ROWS, OUTS, INS = 7, 70, 300
FEATURE, OUT, ROW = 129, 65, 4


def one_hot(shape: tuple[int, int], dim: int, index: int, device: torch.device) -> Tensor:
    hot = torch.zeros(shape, device=device)
    hot.select(dim, index).fill_(1)
    return hot


def probe(device: torch.device, **kwargs: Any) -> Probe:
    """Where DropConnect lets something through: True = kept."""
    input, weight, bias = (
        torch.ones(shape, device=device, requires_grad=True)
        for shape in ((ROWS, INS), (OUTS, INS), (OUTS,))
    )
    feature = one_hot((ROWS, INS), 1, FEATURE, device).requires_grad_()
    shown = dropconnect_linear(feature, weight, None, **kwargs)
    output = dropconnect_linear(input, weight, bias, **kwargs)

    def gradient(leaf: Tensor, hot: Tensor) -> Tensor:
        return torch.autograd.grad(output, leaf, hot, retain_graph=True)[0]

    row = one_hot((ROWS, OUTS), 0, ROW, device)
    out = one_hot((ROWS, OUTS), 1, OUT, device)
    seen = (shown, gradient(input, out), gradient(weight, row), gradient(bias, row))
    return Probe(*(result.detach().cpu() != 0 for result in seen))


@pytest.mark.parametrize("storage", ["regenerate", "packed"])
@pytest.mark.parametrize("p", [0.5, 0.3])
@pytest.mark.parametrize("mask", MODES)
def test_every_product_uses_the_contract_s_mask(
    cuda: torch.device, mask: str | int, p: float, storage: str
) -> None:
    share = reference.rows_per_mask((ROWS, INS), mask)
    which = torch.arange(ROWS) // share
    masks = int(which[-1]) + 1
    kept = reference.mask((masks * OUTS, INS), p, seed=9).view(masks, OUTS, INS)[which]
    kept_bias = reference.mask((masks, OUTS), p, seed=9, stream=1)[which]
    expected = Probe(kept[:, :, FEATURE], kept[:, OUT], kept[ROW], kept_bias[ROW])
    for device in (torch.device("cpu"), cuda):
        seen = probe(device, p=p, mask=mask, seed=9, mask_storage=storage)
        for name, a, b in zip(Probe._fields, seen, expected, strict=True):
            assert torch.equal(a, b), f"{name} on {device}"


def moved(operands: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    return tuple(tensor.to(device) for tensor in operands)


@pytest.mark.parametrize("convention", ["inverted", "paper"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "out_features"), [((1, 1), 1), ((33, 129), 65), ((2, 5, 300), 70), ((130, 1000), 33)]
)
def test_results_agree_within_rounding(
    cuda: torch.device,
    shape: tuple[int, ...],
    out_features: int,
    dtype: torch.dtype,
    convention: str,
) -> None:
    """Each may err by twice torch's own error and two ulps, so they differ by twice that."""
    operands = random_operands(shape, out_features, dtype)
    keys = {"p": 0.3, "seed": -4, "convention": convention}
    truth = with_gradients(
        reference.dropconnect_linear, tuple(t.double() for t in operands), **keys
    )
    own = with_gradients(reference.dropconnect_linear, operands, **keys)
    here = with_gradients(dropconnect_linear, operands, **keys)
    there = with_gradients(dropconnect_linear, moved(operands, cuda), **keys)
    ulps = 16 if dtype == torch.float64 else 2
    for name, a, b, o, t in zip(NAMES, here, there, own, truth, strict=True):
        assert (b.device, b.dtype, b.shape) == (cuda, a.dtype, a.shape)
        scale = float(t.norm())
        bound = 2 * relative_error(o, t) + ulps * torch.finfo(dtype).eps
        assert float((a.double() - b.cpu().double()).norm()) <= 2 * bound * scale, name


def dense_truth(operands: tuple[Tensor, ...], p: float, rows_per_mask: int) -> list[Tensor]:
    """The layer in float64 on the operands' device, one row at a time; masks from the CPU.

    The reference would need a float64 mask of the whole batch.
    """
    input, weight, bias, grad = (tensor.double() for tensor in operands)
    (rows, ins), outs = input.shape, weight.shape[0]
    masks, q = -(-rows // rows_per_mask), reference.keep_rate(p)
    kept_bias = fused_dropout.mask((masks, outs), p, seed=2, stream=1).to(input.device)
    kept = fused_dropout.mask((masks * outs, ins), p, seed=2).view(masks, outs, ins)
    output, d_input = torch.empty_like(grad), torch.empty_like(input)
    d_weight, d_bias = torch.zeros_like(weight), torch.zeros_like(bias)
    for row in range(rows):
        m = kept[row // rows_per_mask].to(input.device)
        m_bias = kept_bias[row // rows_per_mask]
        masked = weight * m
        output[row] = masked @ input[row] + bias * m_bias
        d_input[row] = masked.t() @ grad[row]
        d_weight += m * torch.outer(grad[row], input[row])
        d_bias += m_bias * grad[row]
    return [result / q for result in (output, d_input, d_weight, d_bias)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("shape", "out_features", "p", "mask"),
    [
        ((128, 1024), 1024, 0.5, "example"),  # Table 1 of the paper
        ((128, 1024), 1024, 0.1, "example"),
        ((301, 1537), 515, 0.3, 24),
        ((64, 4096), 1000, 0.5, "batch"),
    ],
)
def test_large_layers(
    cuda: torch.device,
    shape: tuple[int, int],
    out_features: int,
    p: float,
    mask: str | int,
    dtype: torch.dtype,
) -> None:
    """Sums of n rounded terms err by about sqrt(n) / 7 ulps: below 10, with any order of a sum."""
    operands = moved(random_operands(shape, out_features, dtype), cuda)
    truth = dense_truth(operands, p, reference.rows_per_mask(shape, mask))
    for storage in ("regenerate", "packed"):
        ours = with_gradients(
            dropconnect_linear, operands, p=p, mask=mask, seed=2, mask_storage=storage
        )
        for name, a, t in zip(NAMES, ours, truth, strict=True):
            bound = torch.finfo(dtype).eps + 10 * torch.finfo(torch.float32).eps
            assert relative_error(a, t) <= bound, f"{name}, {storage}"


@pytest.mark.parametrize("storage", ["regenerate", "packed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_do_not_vary_from_run_to_run(
    cuda: torch.device, dtype: torch.dtype, storage: str
) -> None:
    operands = moved(random_operands((130, 2000), 260, dtype), cuda)
    first, *others = (
        with_gradients(dropconnect_linear, operands, p=0.3, seed=1, mask_storage=storage)
        for _ in range(5)
    )
    for other in others:
        for name, a, b in zip(NAMES, first, other, strict=True):
            assert torch.equal(a, b), name


@pytest.mark.parametrize("training", [True, False])
def test_the_reference_runs_on_any_device(cuda: torch.device, training: bool) -> None:
    kept = reference.mask((3, 130), 0.3, seed=1, device=cuda)
    assert kept.device == cuda
    assert torch.equal(kept.cpu(), reference.mask((3, 130), 0.3, seed=1))
    operands = random_operands((2, 5, 130), 12, torch.float64)

    def layer(*tensors: Tensor) -> Tensor:
        return reference.dropconnect_linear(*tensors, 0.3, training, seed=1)

    for a, b in zip(
        with_gradients(layer, operands), with_gradients(layer, moved(operands, cuda)), strict=True
    ):
        assert b.device == cuda
        torch.testing.assert_close(b.cpu(), a)
