"""peak_extra_bytes: what a call needs on top of what the process holds; what autograd keeps."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fused_dropout._tools import memory
from fused_dropout._tools.memory import available_bytes, kept_for_backward, peak_extra_bytes

MIB = 2**20
SLACK = 4 * MIB

linux_only = pytest.mark.skipif(
    not sys.platform.startswith("linux") or peak_extra_bytes(lambda: None) is None,
    reason="the peak cannot be reset here",
)


def measured(fn: Callable[[], object]) -> int:
    peak = peak_extra_bytes(fn)
    assert peak is not None
    return peak


@linux_only
def test_touched_memory_is_counted() -> None:
    assert abs(measured(lambda: bytearray(b"x") * (64 * MIB)) - 64 * MIB) < SLACK
    assert abs(measured(lambda: torch.ones(16 * MIB)) - 64 * MIB) < SLACK
    assert measured(lambda: None) < SLACK


@linux_only
def test_memory_released_inside_counts_at_its_peak() -> None:
    assert abs(measured(lambda: torch.ones(16 * MIB).sum()) - 64 * MIB) < SLACK


@linux_only
def test_freed_memory_is_no_free_capacity() -> None:
    pieces = [torch.ones(MIB // 4) for _ in range(200)]
    small = [bytearray(1000) for _ in range(100_000)]
    del pieces, small
    assert abs(measured(lambda: [torch.ones(2048) for _ in range(8192)]) - 64 * MIB) < 12 * MIB


@linux_only
def test_multi_threaded_operators() -> None:
    x = torch.ones(16 * MIB)
    x.add(1.0)  # sets up the thread pool
    assert abs(measured(lambda: (x + 1.0) * 2.0) - 128 * MIB) < SLACK


@linux_only
def test_exceptions_pass_through() -> None:
    with pytest.raises(ZeroDivisionError):
        peak_extra_bytes(lambda: 1 // 0)


def test_unsupported_system_gives_none_without_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CLEAR_REFS", Path("/nowhere/clear_refs"))
    calls: list[int] = []
    assert peak_extra_bytes(lambda: calls.append(1)) is None
    assert calls == []


def test_available_bytes_respects_a_container_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    unlimited = available_bytes()
    (tmp_path / "memory.max").write_text("1048576\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    assert available_bytes() == 48576
    (tmp_path / "memory.max").write_text("max\n")
    assert (available_bytes() is None) == (unlimited is None)


class KeepsAnAttribute(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor) -> torch.Tensor:
        ctx.held, ctx.number = torch.zeros(3), 7
        return input * 2

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad * 2


def test_what_autograd_keeps() -> None:
    leaf = torch.ones(5, requires_grad=True)

    def call() -> torch.Tensor:
        doubled = KeepsAnAttribute.apply(leaf)
        return doubled.exp() + doubled

    assert [len(tensor) for tensor in kept_for_backward(call)] == [5, 3]
    assert kept_for_backward(lambda: leaf + 1) == []
    assert kept_for_backward(lambda: leaf.detach().exp()) == []
