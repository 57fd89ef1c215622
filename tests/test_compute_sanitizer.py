"""The CUDA kernels on a GPU under NVIDIA's compute-sanitizer: no bad memory access, no race.

memcheck sees accesses outside of global, shared and local memory, racecheck races in shared memory.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from cuda_on_cpu.runner import TOOL_ERROR_STATUS, CheckedWorker, KernelFault
from test_cuda_dropconnect import LAYERS, SEED, poisoned, run_on_device, stored_masks
from test_cuda_mask import as_bytes, groups, packed, state
from test_dropconnect_linear import random_operands

import fused_dropout

TOOLS = ("memcheck", "racecheck")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SUMMARIES = {
    "memcheck": "ERROR SUMMARY: 0 errors",
    "racecheck": "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)",
}
CANARY_BLOCKS, CANARY_SIZE = 4, 256


def assert_clean(checked: CheckedWorker) -> None:
    """The whole report is the tool's name and its count of nothing: not even a remark."""
    report = checked.finish()
    lines = [line.strip("= ") for line in report.splitlines()]
    found = [line for line in lines if line]
    assert found == ["COMPUTE-SANITIZER", SUMMARIES[checked.mode], "exit status 0"], report


def plant(checked: CheckedWorker, canary: str, n: int) -> str:
    """What is reported when the canary with this name runs with its bug, on n numbers."""
    numbers = np.arange(n, dtype=np.float32)
    try:
        checked.call(f"canary_{canary}", 1, CANARY_BLOCKS, numbers, np.zeros_like(numbers), n)
        return checked.finish()
    except KernelFault as fault:
        return str(fault)


@pytest.mark.parametrize("checked", TOOLS, indirect=True)
def test_mask_kernels(checked: CheckedWorker) -> None:
    for shape in [(1, 1), (5, 129), (257, 130), (3, 4097)]:
        for p in (0.5, 0.3):
            packed(checked, shape, p, state())
            packed(checked, shape, p, state(), max_blocks=1)
            as_bytes(checked, shape, p, state())
            as_bytes(checked, shape, p, state(), misaligned=3)
    groups(checked, 0.3, 2**32 - 4, 7, 257)
    assert_clean(checked)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("checked", TOOLS, indirect=True)
def test_dropconnect_kernels(checked: CheckedWorker, dtype: torch.dtype) -> None:
    for layer in LAYERS:
        operands = random_operands((layer.rows, layer.in_features), layer.out_features, dtype)
        for stored in (False, True):
            run_on_device(checked, layer, operands, stored)
    assert_clean(checked)


@pytest.mark.parametrize("checked", TOOLS, indirect=True)
def test_storing_masks(checked: CheckedWorker) -> None:
    rng_state = fused_dropout.make_rng_state(SEED)
    for layer in LAYERS:
        expected = stored_masks(layer, rng_state)
        bits, words = poisoned(checked, expected.size, dtype=torch.float32)
        arguments = (rng_state.numpy(), layer.sizes(), layer.p, bits)
        assert checked.call("store_masks", *arguments) == 0
        assert np.array_equal(words.numpy().view(np.uint32), expected.ravel())
    assert_clean(checked)


# ---- The tools find what they are for -----------------------------------------------------------


@pytest.mark.parametrize("checked", ["memcheck"], indirect=True)
@pytest.mark.parametrize("access", ["read", "write"])
def test_memcheck_reports_an_access_past_the_end(checked: CheckedWorker, access: str) -> None:
    report = plant(checked, f"{access}_past_the_end", CANARY_SIZE - 10)
    assert f"Invalid __global__ {access}" in report, report
    assert re.search(r"ERROR SUMMARY: [1-9]", report), report


@pytest.mark.parametrize("checked", ["racecheck"], indirect=True)
@pytest.mark.parametrize("canary", ["missing_barrier", "missing_second_barrier"])
def test_racecheck_reports_a_race(checked: CheckedWorker, canary: str) -> None:
    report = plant(checked, canary, CANARY_SIZE)
    assert re.search(r"RACECHECK SUMMARY: [1-9]", report), report
    assert f"exit status {TOOL_ERROR_STATUS}" in report, report
