"""What tests of several commands ask for."""

from __future__ import annotations

import pytest

from fused_dropout._tools import memory
from fused_dropout._tools.bench import command, devices, sweeps


@pytest.fixture
def small_problems(monkeypatch: pytest.MonkeyPatch) -> None:
    """With --quick, problems of at most 60 elements; short timings, and memory unknown."""
    monkeypatch.setattr(devices, "_BLOCK_SECONDS", 1e-4)
    monkeypatch.setattr(memory, "peak_extra_bytes", lambda call: None)
    for module in (command, sweeps):
        monkeypatch.setattr(module, "quick_elements", lambda op: 60)
