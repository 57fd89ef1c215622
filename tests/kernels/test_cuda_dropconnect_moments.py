"""The CUDA kernels of DropConnect's moments, run on the CPU."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from cuda_on_cpu.runner import Misaligned, Worker
from support.accuracy import is_accurate
from support.kernel_memory import check_end, memory, name_of, poisoned
from support.tensors import DTYPES, computing_type, random_tensors
from torch import Tensor

SCALES = (0.75, 0.1875)


ANY_BLOCKS = 1 << 14  # as the operator launches them


class Case(NamedTuple):
    """Operands with strides of rows and columns; without, rows follow one another."""

    rows: int
    outs: int
    ins: int
    input: tuple[int, int] | None = None
    weight: tuple[int, int] | None = None
    bias_stride: int = 1
    bias: bool = True
    mask_bias: bool = True
    max_blocks: int = ANY_BLOCKS

    def strides(self) -> list[tuple[int, ...]]:
        """Of the three operands."""
        dense = (self.ins, 1)
        return [self.input or dense, self.weight or dense, (self.bias_stride,)]

    def sizes(self) -> np.ndarray:
        strides = sum(self.strides(), ())
        return np.array([self.rows, self.ins, self.outs, *strides, *self[6:]], np.int64)


# One row and two, tiles of 8 rows and 4 output features and their rests, lanes with 4 columns each.
CASES = (
    Case(1, 1, 1),
    Case(1, 9, 130),
    Case(2, 5, 128, mask_bias=False),
    Case(3, 4, 4, bias=False),
    Case(8, 8, 256),
    Case(9, 7, 131, mask_bias=False),
    Case(17, 33, 12),
    Case(17, 33, 12, max_blocks=1),  # warps with several tiles
    Case(2, 35, 5, max_blocks=2),
    Case(5, 6, 20, (64, 3), (84, 4), bias_stride=2),
    Case(9, 5, 130, (132, 1), (136, 1), bias_stride=3),  # aligned rows that end within a lane's 4
    Case(4, 3, 12, (12, 1), (1, 3)),  # one of the two is read four columns at a time
    Case(4, 3, 12, (1, 4), (12, 1)),
    Case(3, 2, 0),
    Case(0, 3, 4),
)


def laid_out(tensor: Tensor, strides: tuple[int, ...]) -> np.ndarray:
    """Memory up to the tensor's last element, with NaNs between the others."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
    gaps = torch.full((last + 1 if tensor.numel() else 0,), math.nan, dtype=tensor.dtype)
    if tensor.numel():
        gaps.as_strided(tensor.shape, strides).copy_(tensor)
    return memory(gaps)


def call(
    device: Worker, case: Case, dtype: torch.dtype, input: Tensor, weight: Tensor, bias: Tensor,
    scales: tuple[float, float] = SCALES,
) -> list[Tensor]:  # fmt: skip
    real = computing_type(dtype)
    results = [poisoned(device, case.rows, case.outs, dtype=real) for _ in range(2)]
    done = device.call(
        f"dropconnect_moments_{name_of(dtype)}", case.sizes(), *scales,
        *map(laid_out, (input, weight, bias), case.strides()),
        *(numbers for numbers, _ in results),
    )  # fmt: skip
    assert done == 0
    for numbers, tensor in results:
        check_end(numbers, tensor.numel())
    return [tensor for _, tensor in results]


def expected(
    case: Case, input: Tensor, weight: Tensor, bias: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    x, w, b = input.to(dtype), weight.to(dtype), bias.to(dtype) * case.bias
    masked = b if case.mask_bias else torch.zeros_like(b)
    mean = SCALES[0] * (x @ w.T + masked) + (b - masked)
    return [mean, SCALES[1] * (x.square() @ w.square().T + masked.square())]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_moments(device: Worker, case: Case, dtype: torch.dtype) -> None:
    shapes = (case.rows, case.ins), (case.outs, case.ins), (case.outs,)
    operands = random_tensors(*shapes, dtype=dtype, seed=4)
    own = expected(case, *operands, computing_type(dtype))
    truth = expected(case, *operands, torch.float64)
    for one, torchs, exact in zip(call(device, case, dtype, *operands), own, truth, strict=True):
        assert is_accurate(one, torchs, exact, ulps=8)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_misaligned_operands_give_the_same_numbers(device: Worker, dtype: torch.dtype) -> None:
    """They are read one by one, in the same order."""
    case = Case(9, 5, 260)
    input, weight, bias = random_tensors((9, 260), (5, 260), (5,), dtype=dtype, seed=5)
    aligned = call(device, case, dtype, input, weight, bias)
    shifted = Misaligned(memory(weight), weight.element_size())
    real = computing_type(dtype)
    results = [poisoned(device, 9, 5, dtype=real) for _ in range(2)]
    done = device.call(
        f"dropconnect_moments_{name_of(dtype)}", case.sizes(), *SCALES, memory(input), shifted,
        memory(bias), *(numbers for numbers, _ in results),
    )  # fmt: skip
    assert done == 0
    for (_, ours), wanted in zip(results, aligned, strict=True):
        assert torch.equal(ours, wanted)


def test_a_scale_of_0_makes_zeros(device: Worker) -> None:
    case = Case(3, 4, 5)
    input = torch.full((3, 5), math.inf)
    moments = call(device, case, torch.float32, input, torch.ones(4, 5), torch.ones(4), (0.0, 0.0))
    assert not any(moment.any() for moment in moments)
