"""The compiled kernels as fixtures."""

from __future__ import annotations

import pytest

from ptx.compile import Build, NvccMissing, compiled_kernels
from ptx.device import Device


@pytest.fixture(scope="session")
def build() -> Build:
    """The compiled kernels; without nvcc the test shows as skipped."""
    try:
        return compiled_kernels()
    except NvccMissing as error:
        pytest.skip(str(error))


@pytest.fixture
def ptx_device(build: Build) -> Device:
    return Device(build)
