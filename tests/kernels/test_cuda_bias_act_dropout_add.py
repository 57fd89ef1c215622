"""The transformer epilogue's CUDA kernels, run on the CPU: the reference's numbers and masks."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from cuda_on_cpu.runner import Misaligned, Worker
from support.accuracy import is_accurate
from support.bias_act_dropout_add import random_operands
from support.kernel_memory import check_end, memory, name_of, poisoned
from support.tensors import DTYPES
from torch import Tensor

import fused_dropout
from fused_dropout import reference

SEED = -77
KINDS = list(reference.ACTIVATIONS)  # in the order of the kernels' enum
BIAS, ADDEND, INPUT, SUMS = 1, 2, 4, 8


class Case(NamedTuple):
    """A [rows, features] input."""

    rows: int
    features: int
    p: float
    item_rows: int = 0  # that a warp walks down; 0 is the kernels' choice


# Edges of groups (128 columns), tiles (128 or 256), drawn rows (16 or 32), slices and their groups
# (up to 4), of rows joined with and without a rest, and of rows that are too few to be joined.
CASES = (
    Case(1, 1, 0.5),
    Case(40, 3, 0.1),
    Case(5, 127, 0.3),
    Case(3, 128, 0.5),
    Case(130, 129, 0.1),
    Case(2, 1000, 0.25),
    Case(90, 64, 0.1, item_rows=100),
    Case(37, 384, 0.1, item_rows=20),
    Case(35, 256, 0.3, item_rows=33),
    Case(2100, 3, 0.1),
    Case(300, 24, 0.3, item_rows=2),
    Case(70, 256, 0.1, item_rows=1),
    Case(65, 640, 0.2, item_rows=9),
    Case(6, 520, 1.0),
    Case(9, 300, 0.0),
)


def placed(array: np.ndarray, misaligned: bool) -> Misaligned:
    return Misaligned(array, array.itemsize if misaligned else 0)


def run_on_device(
    device: Worker,
    case: Case,
    activation: str,
    operands: tuple[Tensor, ...],
    *,
    given: int = BIAS | ADDEND | SUMS,
    misaligned: str = "none",
) -> list[Tensor]:
    """output, d_input and, if wanted, d_bias of the CUDA kernels."""
    input = operands[0]
    name = name_of(input.dtype)
    q = reference.keep_rate(case.p)
    state = fused_dropout.make_rng_state(SEED).numpy()
    settings = (state, case.p, 1 / q if q > 0 else 1.0, KINDS.index(activation))
    shape = (input.numel(), case.features, case.item_rows)
    given_backward = given | (INPUT if activation != "none" else 0)
    x, b, r, g = (
        placed(memory(tensor), misaligned == which)
        for which, tensor in zip(("input", "bias", "residual", "gradient"), operands, strict=True)
    )
    output_memory, output = poisoned(device, *input.shape, dtype=input.dtype)
    target = placed(output_memory, misaligned == "result")
    arguments = (*settings, *shape, given, x, b, r, target)
    assert device.call(f"epilogue_forward_{name}", *arguments) == 0
    check_end(output_memory, output.numel())

    d_input_memory, d_input = poisoned(device, *input.shape, dtype=input.dtype)
    d_bias_memory, d_bias = poisoned(device, case.features, dtype=input.dtype)
    computed_in = torch.float64 if input.dtype == torch.float64 else torch.float32
    workspace, _ = poisoned(device, 2 * input.numel(), dtype=computed_in)
    sums = (workspace, 2 * input.numel())
    results = (placed(d_input_memory, misaligned == "result"), *sums, d_bias_memory)
    arguments = (*settings, *shape, given_backward, g, x, b, *results)
    assert device.call(f"epilogue_backward_{name}", *arguments) == 0
    check_end(d_input_memory, d_input.numel())
    check_end(d_bias_memory, d_bias.numel())
    return [output, d_input, d_bias] if given & SUMS else [output, d_input]


def expected(case: Case, activation: str, operands: tuple[Tensor, ...], given: int) -> list[Tensor]:
    """output, d_input and d_bias by autograd."""
    input, bias, residual, grad = operands
    leaves = [input.clone().requires_grad_(), bias.clone().requires_grad_()]
    output = reference.bias_act_dropout_add(
        leaves[0],
        leaves[1] if given & BIAS else None,
        residual if given & ADDEND else None,
        case.p,
        activation,
        seed=SEED,
    )
    wanted = leaves if given & BIAS else leaves[:1]
    return [output.detach(), *torch.autograd.grad(output, wanted, grad)]


def check(
    device: Worker,
    case: Case,
    activation: str,
    dtype: torch.dtype,
    given: int = BIAS | ADDEND | SUMS,
    misaligned: str = "none",
) -> None:
    operands = random_operands((case.rows, case.features), dtype)
    ours = run_on_device(device, case, activation, operands, given=given, misaligned=misaligned)
    own = expected(case, activation, operands, given)
    truth = expected(case, activation, tuple(tensor.double() for tensor in operands), given)
    names = ("output", "d_input", "d_bias")[: len(ours)]
    for name, a, b, t in zip(names, ours, own, truth, strict=True):
        assert is_accurate(a, b, t, ulps=3), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_matches_reference(device: Worker, case: Case, dtype: torch.dtype) -> None:
    activation = KINDS[CASES.index(case) % len(KINDS)]
    check(device, case, activation, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", KINDS)
def test_activations(device: Worker, activation: str, dtype: torch.dtype) -> None:
    check(device, Case(4, 200, 0.5), activation, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("item_rows", [0, 40])
@pytest.mark.parametrize("misaligned", ["input", "bias", "residual", "gradient", "result"])
def test_any_one_tensor_may_be_misaligned(
    device: Worker, misaligned: str, item_rows: int, dtype: torch.dtype
) -> None:
    check(device, Case(37, 130, 0.1, item_rows), "gelu", dtype, misaligned=misaligned)


@pytest.mark.parametrize("activation", ["none", "silu"])
@pytest.mark.parametrize("given", [0, ADDEND])
def test_without_a_bias(device: Worker, given: int, activation: str) -> None:
    """The elements are then cut into rows of 4096, whatever the features."""
    check(device, Case(101, 91, 0.3), activation, torch.float32, given)
    check(device, Case(3, 5, 0.5), activation, torch.bfloat16, given)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", KINDS)
def test_special_values(device: Worker, activation: str, dtype: torch.dtype) -> None:
    """NaNs and infinities become what torch makes of them, where they are kept."""
    case = Case(16, 80, 0.3)
    operands = random_operands((case.rows, case.features), dtype)
    specials = torch.tensor([math.nan, math.inf, -math.inf], dtype=dtype)
    operands[0].view(-1)[: 50 * len(specials)] = specials.repeat(50)
    kept = fused_dropout.mask(case.rows * case.features, case.p, seed=SEED).view(16, 80)
    ours = run_on_device(device, case, activation, operands)
    # In float64: torch's float32 gelu(inf) is NaN on some CPUs.
    own = expected(case, activation, tuple(t.double() for t in operands), BIAS | ADDEND)
    for name, a, b in zip(("output", "d_input"), ours, own, strict=False):
        assert a[~kept].isfinite().all(), name
        of_kept, wanted = a[kept].double(), b[kept]
        assert torch.equal(of_kept.isnan(), wanted.isnan()), name
        assert torch.equal(of_kept.isinf(), wanted.isinf()), name
        assert torch.equal(of_kept[of_kept.isinf()], wanted[wanted.isinf()]), name
    assert torch.equal(ours[1][kept] == 0, own[1][kept] == 0), "slopes, relu's of a NaN among them"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", [Case(3, 300, 0.3), Case(40, 256, 0.5, item_rows=40)], ids=str)
def test_masks_are_the_contract_s(device: Worker, case: Case, dtype: torch.dtype) -> None:
    """A NaN shows where its element is kept, and only there."""
    kept = fused_dropout.mask(case.rows * case.features, case.p, seed=SEED)
    kept = kept.view(case.rows, case.features)
    ones = torch.ones(case.rows, case.features, dtype=dtype)
    zeros, bias = torch.zeros_like(ones), torch.zeros(case.features, dtype=dtype)
    operands = (ones * math.nan, bias, zeros, ones)
    output, d_input, d_bias = run_on_device(device, case, "gelu", operands)
    assert torch.equal(output.isnan(), kept)
    assert torch.equal(output[~kept], zeros[~kept])
    assert torch.equal(d_input.isnan(), kept)
    assert torch.equal(d_bias.isnan(), kept.any(0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_elements_that_do_not_exist_have_no_gradient(device: Worker, dtype: torch.dtype) -> None:
    """Joined rows, the last of which lacks some: a bias of NaN counts only where an element is.

    A column keeps no element, but one that would follow behind the last row.
    """
    case = Case(257, 8, 0.995)
    kept = fused_dropout.mask(case.rows * case.features, case.p, seed=SEED)
    kept = kept.view(case.rows, case.features)
    assert not kept.any(0).all()
    zeros = torch.zeros(case.rows, case.features, dtype=dtype)
    bias = torch.full((case.features,), math.nan, dtype=dtype)
    *_, d_bias = run_on_device(device, case, "gelu", (zeros, bias, zeros, zeros + 1))
    assert torch.equal(d_bias.isnan(), kept.any(0))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_workspace(device: Worker, dtype: torch.dtype) -> None:
    """Of large tensors a number for 16 elements at most, whatever the shape; of few rows none."""
    for rows, features in ((256, 1_000_003), (4096, 100_001), (32_768, 4096), (2**20, 127)):
        count = rows * features
        size = device.call(f"epilogue_workspace_{name_of(dtype)}", 0.1, count, features)
        assert 0 <= size <= count // 16
    for rows, features in ((1, 1000), (7, 3), (32, 768), (20, 1_000_003)):
        assert (
            device.call(f"epilogue_workspace_{name_of(dtype)}", 0.1, rows * features, features) == 0
        )
