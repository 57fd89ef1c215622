"""Fixtures that all tests may use; what test files import is in support/."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

# Torch's threads sleep while they wait for work. By default they spin, and `make test` has as many
# threads as cores in each of as many processes, which would spin in place of each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is loaded

import torch

pytest.register_assert_rewrite("support")

from support.devices import (  # noqa: E402
    ISAS,
    default_device,
    forced_isa,
    require_cuda,
    threads,
)

pytest_plugins = ["cuda_on_cpu.plugin"]  # the fixtures that run CUDA kernels

# Where kernels run. Inside `place` and `backend` torch's factory functions make their tensors on
# the device that the fixture yields. torch.Generator and torch.from_numpy do not: name it there.


@pytest.fixture(params=("cpu", "cuda"))
def place(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Runs the test on the CPU and on a GPU."""
    with default_device(request.param) as device:
        yield device


@pytest.fixture(params=(*ISAS, "cuda"))
def backend(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Runs the test once on each implementation: the CPU's instruction sets, and CUDA."""
    if request.param == "cuda":
        with default_device("cuda") as device:
            yield device
    else:
        with forced_isa(request.param), default_device("cpu") as device:
            yield device


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on each instruction set of the CPU."""
    with forced_isa(request.param):
        yield request.param


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For modules so small that threads cost more than they save."""
    with threads(1):
        yield


@pytest.fixture
def cuda() -> torch.device:
    """A GPU, for tests that are about nothing else; torch's default device stays the CPU."""
    require_cuda()
    return torch.device("cuda", torch.cuda.current_device())
