"""Where kernels run: devices, instruction sets, threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from fused_dropout._core import extension
from fused_dropout._core.extension import cuda_obstacle

ISAS = ("avx512", "avx2", "plain")


def require_cuda() -> None:
    """Skips the test where no CUDA kernel can run.

    With FUSED_DROPOUT_REQUIRE_CUDA in the environment the test fails there instead.
    """
    obstacle = cuda_obstacle()
    if obstacle is None:
        return
    if os.environ.get("FUSED_DROPOUT_REQUIRE_CUDA"):
        pytest.fail(f"FUSED_DROPOUT_REQUIRE_CUDA is set, but: {'; '.join(obstacle)}")
    pytest.skip(f"CUDA kernels cannot run here: {obstacle[0]}")


def generator_state(device: torch.device) -> torch.Tensor:
    """The state of torch's default generator of `device`, as bytes."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


@contextmanager
def default_device(name: str) -> Iterator[torch.device]:
    """torch's default device is `name`; without a GPU, "cuda" skips or fails the test."""
    if name == "cuda":
        require_cuda()
    with torch.device(name):
        yield torch.empty(0).device


@contextmanager
def forced_isa(name: str) -> Iterator[None]:
    """The CPU kernels use this instruction set; one that this machine lacks skips the test."""
    if name not in extension.available_isas():
        pytest.skip(f"this processor cannot run {name}")
    with extension.use_isa(name):
        yield


@contextmanager
def threads(count: int) -> Iterator[None]:
    """torch computes with this many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
