"""DropConnect by matrix products on CUDA, run on the CPU: the reference's numbers.

A kernel of the worker stands in for the library's product.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from cuda_on_cpu import runner
from cuda_on_cpu.runner import EMULATED, Worker
from support.accuracy import is_accurate, own_and_truth
from support.dropconnect import NO_MASK_BITS, KernelLayer, random_operands, spread
from support.kernel_memory import check_end, name_of, poisoned
from support.tensors import DTYPES
from torch import Tensor

from fused_dropout import reference

SEED = -77
FAR_MORE = 1 << 24  # masked weights at a time


Layer = partial(KernelLayer, cut=FAR_MORE)

# Edges of groups (128 columns), of a lane's 4 columns and of warps (32 groups); a last mask with
# fewer rows.
LAYERS = (
    Layer(1, 1, 1, 1, 0.5),
    Layer(6, 130, 7, 2, 0.5),
    Layer(33, 128, 65, 8, 0.25),
    Layer(40, 300, 66, 7, 0.1),
    Layer(3, 4100, 5, 3, 0.5),
    Layer(20, 31, 132, 5, 1.0),
    Layer(9, 140, 33, 2**63 - 1, 0.4),
    # Two masks at a time, of three; and one.
    Layer(9, 140, 20, 3, 0.5, cut=5600),
    Layer(9, 140, 20, 3, 0.5, cut=2800),
    # 7 output features, or 128 columns, of one mask at a time.
    Layer(8, 260, 20, 4, 0.5, cut=7 * 260),
    Layer(8, 260, 20, 8, 0.5, cut=1),
    # 33 masks at a time, of 67.
    Layer(67, 20, 6, 1, 0.3, cut=33 * 120),
    # Operands with gaps.
    Layer(20, 140, 70, 6, 0.5, step=3),
)


def run_on_device(
    device: Worker,
    layer: KernelLayer,
    operands: tuple[Tensor, ...],
    *,
    stored: bool = False,
    with_bias: bool = True,
    products: list[int] | None = None,
) -> list[Tensor]:
    """output, d_input, d_weight; `products` gets how many products each has run."""
    input, weight, _, grad = operands
    name = name_of(input.dtype)
    common = layer.known(SEED, stored=stored)
    bias_bits = layer.bias_bits(SEED) if with_bias else NO_MASK_BITS
    results = []

    def call(product: str, shape: tuple[int, ...], *arguments: object) -> None:
        memory_, result = poisoned(device, *shape, dtype=input.dtype)
        count = np.zeros(1, np.int64)
        entry = f"shared_{product}_{name}"
        assert device.call(entry, *common, *arguments, count, memory_) == 0
        check_end(memory_, result.numel(), product)
        results.append(result)
        if products is not None:
            products.append(int(count[0]))

    x, w, b, g = (spread(tensor, layer.step) for tensor in operands)
    call("output", tuple(grad.shape), x, w, b, bias_bits)
    call("d_input", tuple(input.shape), w, g)
    call("d_weight", tuple(weight.shape), x, g)
    return results


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [*((dtype, False) for dtype in DTYPES), (torch.float32, True)],
    ids=lambda value: str(value) if isinstance(value, torch.dtype) else ("drawn", "stored")[value],
)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_matches_reference(
    device: Worker, layer: KernelLayer, dtype: torch.dtype, stored: bool
) -> None:
    shape = (layer.rows, layer.in_features)
    operands = random_operands(shape, layer.out_features, dtype)
    ours = run_on_device(device, layer, operands, stored=stored)
    keys = {"p": layer.p, "mask": layer.rows_per_mask, "seed": SEED}
    own, truth = own_and_truth(reference.dropconnect_linear, operands, **keys)
    names = ("output", "d_input", "d_weight")
    for name, a, b, t in zip(names, ours, own, truth, strict=False):
        assert is_accurate(a, b, t), name


def products_that_are_kept(
    layer: KernelLayer, operands: tuple[Tensor, ...], with_bias: bool
) -> list[Tensor]:
    """output, d_input, d_weight in float64, of which a dropped product is no part."""
    x, w, b, g = (tensor.double() for tensor in operands)
    shape = (layer.masks, layer.out_features, layer.in_features)
    which = torch.arange(layer.rows) // layer.rows_per_mask
    kept = reference.mask(shape, layer.p, seed=SEED)[which]
    scale = 1 / reference.keep_rate(layer.p)

    def products(a: Tensor, b: Tensor, dim: int) -> Tensor:
        return torch.where(kept, a * b, 0).sum(dim) * scale

    output = products(w[None], x[:, None], 2)
    if with_bias:
        kept_bias = reference.mask(shape[:2], layer.p, seed=SEED, stream=1)[which]
        output += torch.where(kept_bias, b, 0) * scale
    return [output, products(w[None], g[..., None], 1), products(x[:, None], g[..., None], 0)]


@pytest.mark.parametrize("special", [math.nan, math.inf])
@pytest.mark.parametrize("operand", ["input", "weight", "grad"])
@pytest.mark.parametrize("with_bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(
    "layer", [Layer(10, 262, 136, 4, 0.5), Layer(3, 4230, 5, 2, 0.5)], ids=["wide", "long"]
)
def test_only_kept_products_are_special(
    device: Worker,
    layer: KernelLayer,
    operand: str,
    special: float,
    with_bias: bool,
) -> None:
    """The library adds 0 * inf = NaN to every result of a row; what is dropped must not show.

    "long" rows have more than 32 groups, whose masks a warp draws at a time.
    """
    operands = random_operands((layer.rows, layer.in_features), layer.out_features, torch.float32)
    spoilt = operands[("input", "weight", None, "grad").index(operand)]
    columns = (0, 3, 31, 127, 128, 4200, spoilt.shape[1] - 1)
    for k, column in enumerate(column for column in columns if column < spoilt.shape[1]):
        spoilt[k % len(spoilt), column] = special
    ours = run_on_device(device, layer, operands, with_bias=with_bias)
    # Rounding aside, the same; the tolerance is that of sums of so many products.
    tolerance = 4 * math.sqrt(max(layer.in_features, layer.rows)) * torch.finfo(torch.float32).eps
    for a, t in zip(ours, products_that_are_kept(layer, operands, with_bias), strict=True):
        torch.testing.assert_close(a.double(), t, rtol=tolerance, atol=tolerance, equal_nan=True)
        assert t.isfinite().any(), "all results are special"


def test_weights_that_overflow_when_they_are_scaled(device: Worker) -> None:
    """In float16 the scaled weights are infinite, but no sum is."""
    layer = Layer(8, 140, 12, 4, 0.5)
    input, weight, bias, grad = random_operands((8, 140), 12, torch.float16)
    weight.fill_(6e4)
    input.zero_()[:, 130] = 1e-3
    grad.zero_()[:, 3] = 1e-3
    operands = (input, weight, bias, grad)
    ours = run_on_device(device, layer, operands, with_bias=False)[:2]
    expected = products_that_are_kept(layer, operands, with_bias=False)[:2]
    for a, t in zip(ours, expected, strict=True):
        torch.testing.assert_close(a.double(), t, rtol=2e-3, atol=0)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        # As [32, 128, 1024] x [1024, 1024], which takes two chunks, but a thousandth of its size.
        (Layer(32, 32, 32, 1, 0.5, cut=16 * 32 * 32), (2, 2, 2)),
        # As 4096 x 4096 x 4096 with one mask.
        (Layer(64, 32, 32, 64, 0.5, cut=32 * 32), (1, 1, 1)),
        # A last mask with fewer rows takes a product of its own.
        (Layer(13, 128, 20, 5, 0.5), (2, 2, 2)),
        # One large mask: in three parts of 7 output features, and in three of 128 columns.
        (Layer(8, 260, 20, 8, 0.5, cut=7 * 260), (3, 3, 1)),
    ],
)
def test_launches(device: Worker, layer: KernelLayer, expected: tuple[int, ...]) -> None:
    """Masked weights and a product for each chunk, and one kernel to finish."""
    operands = random_operands((layer.rows, layer.in_features), layer.out_features, torch.bfloat16)
    products: list[int] = []
    before = runner.launches[device.mode]
    run_on_device(device, layer, operands, products=products)
    assert tuple(products) == expected
    if device.mode in EMULATED:
        of_output, of_d_input, of_d_weight = expected
        wanted = 2 * of_output + 1 + 2 * of_d_input + 1 + 2 * of_d_weight
        assert runner.launches[device.mode] - before == wanted


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_is_bounded(device: Worker, dtype: torch.dtype) -> None:
    """Of the workspaces, whatever the shapes: 2**24 elements, one output feature or 128 columns."""

    def plan(*layer: int) -> list[int]:
        found = np.zeros(5, np.int64)
        sizes = np.array([*layer, FAR_MORE, 1], np.int64)
        assert device.call(f"shared_plan_{name_of(dtype)}", sizes, found) == 0
        return found.tolist()

    million = 1024 * 1024
    assert plan(4096, 1024, 1024, 128) == [16 * million] * 3 + [million, 1]
    assert plan(4096, 4096, 4096, 4096) == [16 * million, 16 * million, 0, 0, 1]
    assert plan(4096, 8192, 8192, 128) == [16 * million] * 4 + [1]
    assert max(plan(10**6, 100, 100, 10)[:4]) <= FAR_MORE
    assert max(plan(64, 2**20, 1000, 32)[:4]) <= FAR_MORE
    assert plan(64, 2**20, 2**20, 32) == [16 * 2**20, 128 * 2**20, 16 * 2**20, 16 * 2**20, 1]
    # Too few rows to a mask, or too little work.
    assert plan(4096, 1024, 1024, 7)[-1] == plan(64, 64, 64, 64)[-1] == 0
    # More than a library's product takes.
    assert plan(2**31, 64, 64, 64)[-1] == 0
