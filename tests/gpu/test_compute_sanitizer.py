"""The CUDA kernels on a GPU under NVIDIA's compute-sanitizer: no bad memory access, no race.

memcheck sees accesses outside of global, shared and local memory, racecheck races in shared memory.
Each kernel test of an op runs again here, all of its cases in one process under the tool.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from cuda_on_cpu.runner import TOOL_ERROR_STATUS, CheckedWorker, KernelFault
from support.compute_sanitizer import TOOLS, assert_clean
from support.paths import TESTS

KERNELS = TESTS / "kernels"
CANARY_BLOCKS, CANARY_SIZE = 4, 256
FILES = {path.stem.removeprefix("test_cuda_"): path for path in KERNELS.glob("test_cuda_*.py")}

KernelTest = Callable[..., None]


def kernel_tests() -> dict[str, KernelTest]:
    """The kernel tests of all ops, by file and name, as pytest finds them too."""
    if str(KERNELS) not in sys.path:
        sys.path.insert(0, str(KERNELS))
    found = {}
    for op, path in sorted(FILES.items()):
        module = importlib.import_module(path.stem)
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if name.startswith("test_") and "device" in inspect.signature(function).parameters:
                found[f"{op}.{name.removeprefix('test_')}"] = function
    return found


def cases_of(test: KernelTest) -> Iterator[dict[str, Any]]:
    """The arguments of each case, as the test's own `parametrize` marks list them."""
    choices: list[list[dict[str, Any]]] = []
    for mark in getattr(test, "pytestmark", ()):
        names, values = mark.args
        if isinstance(names, str):
            choices.append([{names: value} for value in values])
        else:
            choices.append([dict(zip(names, value, strict=True)) for value in values])
    for chosen in itertools.product(*choices):
        yield {name: value for part in chosen for name, value in part.items()}


def plant(checked: CheckedWorker, canary: str, n: int) -> str:
    """What is reported when the canary with this name runs with its bug, on n numbers."""
    numbers = np.arange(n, dtype=np.float32)
    try:
        checked.call(f"canary_{canary}", 1, CANARY_BLOCKS, numbers, np.zeros_like(numbers), n)
        return checked.finish()
    except KernelFault as fault:
        return str(fault)


KERNEL_TESTS = kernel_tests()


@pytest.mark.parametrize("name", KERNEL_TESTS)
@pytest.mark.parametrize("checked", TOOLS, indirect=True)
def test_kernels(checked: CheckedWorker, name: str) -> None:
    for case in cases_of(KERNEL_TESTS[name]):
        KERNEL_TESTS[name](checked, **case)
    assert_clean(checked)


def test_no_kernel_test_and_no_case_is_left_out() -> None:
    assert {name.partition(".")[0] for name in KERNEL_TESTS} == FILES.keys()
    for name, test in KERNEL_TESTS.items():
        cases = list(cases_of(test))
        assert cases, name
        wanted = set(inspect.signature(test).parameters) - {"device"}
        assert all(set(case) == wanted for case in cases), name


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
