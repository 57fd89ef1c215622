"""Fixtures and files that several tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fused_dropout import _ext

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


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once on each instruction set; one that this machine lacks shows as skipped."""
    if request.param not in _ext.available_isas():
        pytest.skip(f"this processor cannot run {request.param}")
    with _ext.use_isa(request.param):
        yield request.param
