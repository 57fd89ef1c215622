"""Fixtures and files that several tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from fused_dropout._core import extension
from fused_dropout._core.extension import cuda_obstacle

pytest_plugins = ["cuda_on_cpu.plugin"]  # the fixtures that run CUDA kernels

TESTS = Path(__file__).parent
ISAS = ("avx512", "avx2", "plain")


class GoldenMask(NamedTuple):
    """One line of golden_masks.txt."""

    seed: int
    offset: int
    stream: int
    digits: int
    p: float
    rows: int
    cols: int
    words: list[list[int]]


def golden_masks() -> list[GoldenMask]:
    """All lines of golden_masks.txt."""
    masks = []
    for line in (TESTS / "golden_masks.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        left, right = line.split("|")
        seed, offset, stream, digits, p, rows, cols = left.split()
        words = [[int(word, 16) for word in row.split()] for row in right.split("/")]
        masks.append(
            GoldenMask(
                int(seed),
                int(offset),
                int(stream),
                int(digits),
                float(p),
                int(rows),
                int(cols),
                words,
            )
        )
    return masks


def philox_known_answers() -> list[tuple[list[int], list[int], list[int]]]:
    """(counter, key, result) of each line of philox_known_answers.txt."""
    answers = []
    for line in (TESTS / "philox_known_answers.txt").read_text().splitlines():
        if not line.startswith("#"):
            numbers = [int(word, 16) for word in line.split()]
            answers.append((numbers[:4], numbers[4:6], numbers[6:]))
    return answers


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
def cuda() -> torch.device:
    """A GPU, for tests that are about nothing else; torch's default device stays the CPU."""
    require_cuda()
    return torch.device("cuda", torch.cuda.current_device())


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
