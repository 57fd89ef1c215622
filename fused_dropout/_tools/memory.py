"""How much memory a call needs on top of what the process already holds (Linux), and which tensors
autograd keeps after it."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_CGROUP = Path("/sys/fs/cgroup")
_RESET_PEAK = "5"  # see proc(5): sets VmHWM back to the present VmRSS


def peak_extra_bytes(fn: Callable[[], object]) -> int | None:
    """Peak resident memory while `fn` runs, minus the resident memory just before, in bytes.

    What `fn` returns counts: it is alive when `fn` ends. Memory that other threads of this
    process touch meanwhile counts too, as does whatever `fn` sets up only once (thread pools,
    library buffers), so call `fn` once beforehand. The kernel batches its page counts: figures are
    good to about 1 MiB. Returns None, without running `fn`, where the peak cannot be reset
    (not Linux, or /proc is restricted). Whatever `fn` raises is passed on.
    """
    # Freed pages that the allocator still holds are resident already: `fn` could reuse them
    # without raising the peak, so hand them back first.
    gc.collect()
    _trim_heap()
    if not _reset_peak():
        return None
    before = _status_bytes("VmRSS")
    if before is None or _status_bytes("VmHWM") is None:
        return None
    kept_until_read = fn()
    peak = _status_bytes("VmHWM")
    del kept_until_read
    return None if peak is None else max(0, peak - before)


def available_bytes() -> int | None:
    """Memory that new work can use without swapping, in bytes; None if unknown.

    The machine's MemAvailable, or what is left of the container's limit (cgroup v2) if less.
    """
    free = _field_bytes(Path("/proc/meminfo"), "MemAvailable")
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        left = max(0, limit - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):  # no cgroup v2, or no limit ("max")
        return free
    return left if free is None else min(free, left)


def _trim_heap() -> None:
    # A C library other than glibc has no such call, and its heap cannot be trimmed.
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _reset_peak() -> bool:
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK)
    except OSError:
        return False
    return True


def _status_bytes(field: str) -> int | None:
    return _field_bytes(_STATUS, field)


def _field_bytes(path: Path, field: str) -> int | None:
    """Read a `Name:   123 kB` line of a /proc file."""
    try:
        text = path.read_text()
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    return None


def kept_for_backward(call: Callable[[], Tensor]) -> list[Tensor]:
    """The tensors that autograd keeps to differentiate what ``call`` returns.

    They are those that it saves, in the order of the calls, then those that Functions in Python
    have as attributes.
    """
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = call()
    nodes: list[Any] = [output.grad_fn]
    for node in nodes:  # grows on the way
        kept += [held for held in getattr(node, "__dict__", {}).values() if torch.is_tensor(held)]
        following = (each for each, _ in getattr(node, "next_functions", ()))
        nodes += [each for each in following if each is not None and each not in nodes]
    return kept
