"""The cost model of the CUDA kernels, which is in bench/kernel_model, for its tests."""

from __future__ import annotations

import sys

import pytest
from support.paths import ROOT

sys.path.insert(0, str(ROOT / "bench"))  # as when bench/kernel_report.py is run

from kernel_model.tools import ReportError, find_tool  # noqa: E402


@pytest.fixture(scope="session")
def tools() -> None:
    """nvcc and the disassembler; without them the test shows as skipped."""
    try:
        for name in ("nvcc", "cuobjdump"):
            find_tool(name)
    except ReportError as error:
        pytest.skip(str(error))
