"""The CUDA kernel of dropout_linear, run on the CPU: dropout's, on a block of rows.

What is around it, the blocks and the products, is the CPU operator's own code
(csrc/ops/dropped_row_products.h), which tests/ops/test_dropout_linear.py tests.
"""

from __future__ import annotations

import pytest
import torch
from cuda_on_cpu.runner import Worker
from support.kernel_memory import check_end, memory, name_of, poisoned
from support.tensors import DTYPES, assert_same_bits, random_tensor

import fused_dropout
from fused_dropout import reference

SEED, OFFSET = -77, 5
GROUP = 128


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cols", [1, 33, 128, 131, 1000])
def test_blocks_of_rows_have_the_mask_of_the_whole(
    device: Worker, dtype: torch.dtype, cols: int
) -> None:
    """A block is dropped from the group on in which its first row begins."""
    rows = 7
    for p in (0.5, 0.3):
        input = random_tensor((rows, cols), dtype)
        kept = reference.mask(rows * cols, p, seed=SEED, offset=OFFSET).view(rows, cols)
        expected = torch.where(kept, input * 2, 0)
        for begin, end in ((0, 3), (3, 5), (5, 7)):
            before = begin * cols % GROUP
            first = begin * cols - before
            count = end * cols - first
            block = input.flatten()[first : first + count].contiguous()
            numbers, out = poisoned(device, count, dtype=dtype)
            arguments = (memory(block), numbers, count, 0, first // GROUP)
            state = fused_dropout.make_rng_state(SEED, OFFSET).numpy()
            assert device.call(f"dropout_block_{name_of(dtype)}", state, p, *arguments) == 0
            found = out[before:].view(end - begin, cols)
            assert_same_bits(found, expected[begin:end], (cols, p, begin))
            check_end(numbers, count, (cols, p, begin))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_products_are_added_in_place(device: Worker, dtype: torch.dtype) -> None:
    """As dropout of rate 0 with the sums as its residual and its result."""
    with_residual = 1
    for size in (1, 131, 5000):
        part, sums = random_tensor((size,), dtype), random_tensor((size,), dtype, seed=1)
        numbers, out = poisoned(device, size, dtype=dtype)
        out.copy_(sums)
        state = fused_dropout.make_rng_state(SEED, OFFSET).numpy()
        arguments = (memory(part), numbers, numbers, size, with_residual)
        name = f"dropout_linear_{name_of(dtype)}"
        assert device.call(name, state, 0.0, 1.0, 0.0, 0.0, *arguments) == 0
        assert_same_bits(out, part + sums, size)
        check_end(numbers, size, size)
