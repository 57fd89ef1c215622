"""The CUDA DropConnect kernels, run on the CPU: the reference's numbers, the contract's masks."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from cuda_on_cpu.runner import Worker
from support.accuracy import is_accurate, own_and_truth
from support.dropconnect import KernelLayer, random_operands, spread
from support.kernel_memory import check_end, name_of, poisoned
from torch import Tensor

import fused_dropout
from fused_dropout import reference

SEED = -77
MANY_BLOCKS = 264  # to aim at, by cutting sums into slices


Layer = partial(KernelLayer, cut=MANY_BLOCKS)

# Edges of groups (128 columns), tiles (32 rows, 64 output features), chunks (32) and slices.
LAYERS = (
    Layer(1, 1, 1, 1, 0.5),
    Layer(5, 130, 7, 1, 0.5),
    Layer(33, 128, 65, 1, 0.25),
    Layer(40, 257, 66, 7, 0.3),
    Layer(3, 40, 130, 3, 0.1),
    Layer(70, 31, 33, 1, 1.0),
    # One slice, so that a block takes several steps one after another.
    Layer(70, 300, 68, 1, 0.5, cut=1),
    Layer(40, 400, 100, 3, 0.3, cut=5),
    # Five steps in three slices: of the output, of d_weight and of d_input.
    Layer(9, 600, 20, 1, 0.5, cut=3),
    Layer(150, 100, 20, 1, 0.5, cut=3),
    Layer(20, 100, 150, 1, 0.5, cut=3),
    # All rows share one mask; in 32 bits the first would be two rows a mask.
    Layer(9, 140, 33, 2**32 + 2, 0.4),
    Layer(9, 140, 33, 2**63 - 1, 0.4),
    # Operands with gaps.
    Layer(40, 140, 70, 2, 0.5, step=3),
)


def run_on_device(
    device: Worker, layer: KernelLayer, operands: tuple[Tensor, ...], stored: bool
) -> list[Tensor]:
    """output, d_input, d_weight, d_bias of the CUDA kernels."""
    input, weight, bias, grad = operands
    name = name_of(input.dtype)
    common = layer.known(SEED, stored=stored)
    bias_bits = layer.bias_bits(SEED)
    results = []

    def call(product: str, shape: tuple[int, ...], *arguments: object) -> None:
        memory_, result = poisoned(device, *shape, dtype=input.dtype)
        assert device.call(f"{product}_{name}", *arguments, memory_) == 0
        check_end(memory_, result.numel(), product)
        results.append(result)

    x, w, b, g = (spread(tensor, layer.step) for tensor in operands)
    call("forward", tuple(grad.shape), *common, x, w, b, bias_bits)
    call("d_input", tuple(input.shape), *common, w, g)
    call("d_weight", tuple(weight.shape), *common, x, g)
    call("d_bias", tuple(bias.shape), layer.sizes(), layer.scale(), bias_bits, g)
    return results


@pytest.mark.parametrize("stored", [False, True], ids=["drawn", "stored"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_matches_reference(
    device: Worker, layer: KernelLayer, dtype: torch.dtype, stored: bool
) -> None:
    shape = (layer.rows, layer.in_features)
    operands = random_operands(shape, layer.out_features, dtype)
    ours = run_on_device(device, layer, operands, stored)
    keys = {"p": layer.p, "mask": layer.rows_per_mask, "seed": SEED}
    own, truth = own_and_truth(reference.dropconnect_linear, operands, **keys)
    names = ("output", "d_input", "d_weight", "d_bias")
    for name, a, b, t in zip(names, ours, own, truth, strict=True):
        assert is_accurate(a, b, t), name


def test_shared_memory_fits_in_every_gpu_from_sm_80_on(device: Worker) -> None:
    sizes = np.zeros(4, np.int64)
    assert device.call("shared_bytes", sizes) == 0
    assert (sizes > 48 * 1024).all(), "all four need the opt-in"
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
    assert device.call("store_masks", state.numpy(), layer.sizes(), layer.p, memory_) == 0
    assert np.array_equal(memory_[: words.numel()], expected.ravel())
    check_end(memory_, words.numel())
