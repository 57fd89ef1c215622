"""The CUDA DropConnect kernels, run on the CPU: the reference's numbers, the contract's masks."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch
from cuda_on_cpu.runner import Worker
from support.accuracy import is_accurate, own_and_truth
from support.dropconnect import (
    NO_MASK_BITS,
    KernelLayer,
    masks_from,
    random_operands,
    spread,
    stored_masks,
)
from support.kernel_memory import check_end, name_of, poisoned
from torch import Tensor

import fused_dropout
from fused_dropout import reference

SEED = -77
MANY_BLOCKS = 264  # to aim at, by cutting sums into slices


Layer = partial(KernelLayer, cut=MANY_BLOCKS)

# Edges of groups (128 columns), tiles (64 rows, 64 output features; 32 of either for gradients),
# stages (32 columns, 16 of doubles), steps (16 rows or output features) and slices.
LAYERS = (
    Layer(1, 1, 1, 1, 0.5),
    Layer(5, 130, 7, 1, 0.5),
    Layer(65, 128, 65, 1, 0.25),
    Layer(40, 257, 66, 7, 0.3),
    Layer(3, 40, 130, 3, 0.1),
    Layer(70, 31, 33, 1, 1.0),
    # One slice, so that a block takes several steps one after another.
    Layer(70, 300, 68, 1, 0.5, cut=1),
    Layer(40, 400, 100, 3, 0.3, cut=5),
    # Whole tiles only.
    Layer(64, 256, 64, 1, 0.5, cut=1),
    Layer(64, 384, 128, 2, 0.5),
    # One row, column and output feature less than whole tiles.
    Layer(63, 255, 127, 1, 0.5, cut=1),
    # Steps that do not divide by the slices: of the output, of d_weight and of d_input.
    Layer(9, 900, 20, 1, 0.5, cut=3),
    Layer(150, 100, 20, 1, 0.5, cut=7),
    Layer(20, 100, 150, 1, 0.5, cut=7),
    # All rows share one mask; in 32 bits the first would be two rows a mask.
    Layer(9, 140, 33, 2**32 + 2, 0.4),
    Layer(9, 140, 33, 2**63 - 1, 0.4),
    # Operands with gaps.
    Layer(40, 140, 70, 2, 0.5, step=3),
)
NOT_WANTED = np.zeros(1, np.float64)


class KernelResults(NamedTuple):
    output: Tensor
    d_input: Tensor
    d_weight: Tensor
    d_bias: Tensor


def run_on_device(
    device: Worker, layer: KernelLayer, operands: tuple[Tensor, ...], stored: bool
) -> KernelResults:
    """What the CUDA kernels compute. `stored`: their masks are given, and no others can be drawn;
    the bias's masks are drawn all the same."""
    input, weight, bias, grad = operands
    name = name_of(input.dtype)
    state, *rest = layer.known(SEED, stored=stored)
    x, w, b, g = (spread(tensor, layer.step) for tensor in operands)

    def result(shape: torch.Size) -> tuple[np.ndarray, Tensor]:
        return poisoned(device, *shape, dtype=input.dtype)

    output, d_input, d_weight, d_bias = map(
        result, (grad.shape, input.shape, weight.shape, bias.shape)
    )
    call = device.call
    assert call(f"forward_{name}", state, *rest, x, w, b, NO_MASK_BITS.copy(), output[0]) == 0
    arguments = (True, d_input[0], True, d_weight[0])
    assert call(f"gradients_{name}", state, *rest, x, w, g, *arguments) == 0
    assert call(f"d_bias_{name}", state, *rest[:3], g, d_bias[0]) == 0
    results = (output, d_input, d_weight, d_bias)
    for memory_, tensor in results:
        check_end(memory_, tensor.numel())
    return KernelResults(*(tensor for _, tensor in results))


@pytest.mark.parametrize("stored", [False, True], ids=["drawn", "stored"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_matches_reference(
    device: Worker, layer: KernelLayer, dtype: torch.dtype, stored: bool
) -> None:
    shape = (layer.rows, layer.in_features)
    operands = random_operands(shape, layer.out_features, dtype)
    if stored:  # the bias's masks are of another seed
        operands[2].zero_()
    ours = run_on_device(device, layer, operands, stored)
    keys = {"p": layer.p, "mask": layer.rows_per_mask, "seed": SEED}
    own, truth = own_and_truth(reference.dropconnect_linear, operands, **keys)
    for name, a, b, t in zip(KernelResults._fields, ours, own, truth, strict=True):
        if stored and name == "d_bias":
            continue
        assert is_accurate(a, b, t), name


def test_a_bias_alone(device: Worker) -> None:
    """Of a layer without input features, whose masks have no groups."""
    layer = Layer(70, 0, 70, 1, 0.5)
    operands = random_operands((70, 0), 70, torch.float32)
    ours = run_on_device(device, layer, operands, stored=False)
    keys = {"p": layer.p, "mask": 1, "seed": SEED}
    own, truth = own_and_truth(reference.dropconnect_linear, operands, **keys)
    assert is_accurate(ours.output, own[0], truth[0])
    assert is_accurate(ours.d_bias, own[3], truth[3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("cut", [1, 4, MANY_BLOCKS])
def test_bias_gradient_of_more_rows_than_a_block_takes_at_a_time(
    device: Worker, cut: int, dtype: torch.dtype
) -> None:
    layer = Layer(600, 1, 130, 2, 0.3, cut=cut)
    operands = random_operands((600, 1), 130, dtype)
    state, sizes, p, scale, *_ = layer.known(SEED, stored=False)
    memory_, d_bias = poisoned(device, 130, dtype=dtype)
    grad = spread(operands[3], 1)
    assert device.call(f"d_bias_{name_of(dtype)}", state, sizes, p, scale, grad, memory_) == 0
    check_end(memory_, 130)
    keys = {"p": layer.p, "mask": layer.rows_per_mask, "seed": SEED}
    own, truth = own_and_truth(reference.dropconnect_linear, operands, **keys)
    assert is_accurate(d_bias, own[3], truth[3])


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_one_gradient_is_that_of_both(device: Worker, layer: KernelLayer) -> None:
    """Up to the order of its sum, which depends on how many slices there are."""
    operands = random_operands((layer.rows, layer.in_features), layer.out_features, torch.float32)
    both = run_on_device(device, layer, operands, stored=False)
    x, w, _, g = (spread(tensor, layer.step) for tensor in operands)
    known = layer.known(SEED, stored=False)
    for name, wants in (("d_input", (True, False)), ("d_weight", (False, True))):
        expected = getattr(both, name)
        memory_, result = poisoned(device, *expected.shape, dtype=torch.float32)
        results = [memory_ if wanted else NOT_WANTED for wanted in wants]
        arguments = (wants[0], results[0], wants[1], results[1])
        assert device.call("gradients_float32", *known, x, w, g, *arguments) == 0
        check_end(memory_, result.numel())
        torch.testing.assert_close(result, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_forward_stores_the_masks_that_it_draws(
    device: Worker, layer: KernelLayer, dtype: torch.dtype
) -> None:
    """Those that the CPU stores, but for output features that only round up a row."""
    operands = random_operands((layer.rows, layer.in_features), layer.out_features, dtype)
    x, w, b, _ = (spread(tensor, layer.step) for tensor in operands)
    expected = layer.stored(SEED)
    bits, words = poisoned(device, expected.size, dtype=torch.float32)
    stored = bits.view(np.uint32)
    output, result = poisoned(device, *operands[3].shape, dtype=dtype)
    known = layer.known(SEED, stored=False)
    assert device.call(f"forward_{name_of(dtype)}", *known, x, w, b, stored, output) == 0
    check_end(bits, words.numel())
    drawn = stored[: words.numel()].reshape(expected.shape)[:, :, : layer.out_features]
    assert np.array_equal(drawn, expected[:, :, : layer.out_features])
    torch.testing.assert_close(
        result, run_on_device(device, layer, operands, stored=False).output, rtol=0, atol=0
    )


def test_shared_memory_fits_in_every_gpu_from_sm_80_on(device: Worker) -> None:
    sizes = np.zeros(4, np.int64)
    assert device.call("shared_bytes", sizes) == 0
    assert (sizes <= 99 * 1024).all(), "sm_86, sm_89 and sm_120 have no more"


@pytest.mark.parametrize("column", [0, 31, 127, 128, 199])
def test_masks_are_the_contract_s(device: Worker, column: int) -> None:
    """With one-hot rows and unit weights the output shows the mask itself, bit for bit."""
    layer = Layer(9, 200, 70, 2, 0.3)
    kept = fused_dropout.mask((layer.masks * 70, 200), 0.3, seed=SEED)
    expected = kept.view(layer.masks, 70, 200)[torch.arange(9) // 2, :, column]
    input = torch.zeros(9, 200)
    input[:, column] = 1
    operands = (input, torch.ones(70, 200), torch.zeros(70), torch.ones(9, 70))
    output, d_input, *_ = run_on_device(device, layer, operands, stored=False)
    assert torch.equal(output != 0, expected)
    q = reference.keep_rate(0.3)
    torch.testing.assert_close(d_input[:, column], expected.sum(1) / q)


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_stores_the_masks_that_the_cpu_stores(device: Worker, layer: KernelLayer) -> None:
    state = fused_dropout.make_rng_state(SEED)
    expected = layer.stored(SEED)
    bits, words = poisoned(device, expected.size, dtype=torch.float32)
    memory_ = bits.view(np.uint32)
    assert device.call("store_masks", state.numpy(), layer.sizes(), layer.p, 0, memory_) == 0
    assert np.array_equal(memory_[: words.numel()], expected.ravel())
    check_end(memory_, words.numel())


@pytest.mark.parametrize("first", [1, 4, 2**32 - 2, 2**41])
def test_stores_masks_from_any_on(device: Worker, first: int) -> None:
    """The masks of a layer that has those before them too, however many these are."""
    layer = Layer(3, 200, 20, 1, 0.3)
    expected = masks_from(first, 3, 20, 200, 0.3, SEED)
    state = fused_dropout.make_rng_state(SEED)
    outs = stored_masks(20, 200, 1, 0.3, SEED).shape[2]  # rounded up
    bits, words = poisoned(device, expected.size // 20 * outs, dtype=torch.float32)
    memory_ = bits.view(np.uint32)
    assert device.call("store_masks", state.numpy(), layer.sizes(), 0.3, first, memory_) == 0
    stored = memory_[: words.numel()].reshape(2, 3, outs, 4)
    assert np.array_equal(stored[:, :, :20], expected)
    check_end(memory_, words.numel())
