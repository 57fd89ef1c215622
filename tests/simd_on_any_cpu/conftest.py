"""The kernels of every instruction set, emulated and native, as a fixture."""

from __future__ import annotations

import pytest

from fused_dropout._core import extension
from simd_on_any_cpu.build import LIBRARY, CannotBuild, built
from simd_on_any_cpu.kernels import Kernels


@pytest.fixture(
    scope="session", params=("avx512 emulated", "avx2 emulated", "avx512", "avx2", "plain")
)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """Runs the test on each; what the processor lacks runs emulated alone."""
    isa, _, emulated = request.param.partition(" ")
    if not emulated and isa not in extension.available_isas():
        pytest.skip(f"this processor cannot run {isa}")
    try:
        return Kernels(built(isa, bool(emulated)) / LIBRARY)
    except CannotBuild as obstacle:
        pytest.skip(str(obstacle))
