"""What tests of several commands ask for."""

from __future__ import annotations

import gc
from collections.abc import Iterator

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


@pytest.fixture(scope="module", autouse=True)
def only_new_garbage_is_looked_for() -> Iterator[None]:
    """Benchmarks collect garbage before they measure memory. In a process that has run a thousand
    tests of other folders it takes a second each time to look through all that these have left.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
