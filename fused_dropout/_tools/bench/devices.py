"""What a benchmark runs on: how calls are timed there, the memory they take, what to report."""

from __future__ import annotations

import os
import platform
import re
import time
import timeit
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from fused_dropout._core import extension
from fused_dropout._tools import memory

_BLOCK_SECONDS = 0.03  # one timing repeats the call for about this long
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class MultiplyAddRate:
    """The most fp32 multiply-adds (FFMA) that a GPU can issue."""

    multiprocessors: int
    lanes: int  # of each multiprocessor
    clock_hz: float  # the highest
    clock_source: str

    @property
    def per_second(self) -> float:
        return self.multiprocessors * self.lanes * self.clock_hz

    def figures(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return {**asdict(self), "per_second": self.per_second, "text": self.text()}

    def text(self) -> str:
        return (
            f"{self.multiprocessors} multiprocessors x {self.lanes} fp32 lanes x "
            f"{self.clock_hz / 1e9:.3g} GHz ({self.clock_source}) = "
            f"{self.per_second / 1e12:.3g} T/s"
        )


class Device(Protocol):
    """Where the subjects of a benchmark run."""

    kind: str  # torch's device type: "cpu" or "cuda"

    def name(self) -> str:
        """The model, as its maker calls it."""

    def file_name(self) -> str:
        """What tells results from this device from others, for the name of a file."""

    def measuring(self) -> AbstractContextManager[object]:
        """Settings that hold while subjects run; what was set before comes back."""

    def warm_up(self, call: Callable[[], object]) -> float:
        """Call until nothing is left to set up; the seconds that a call takes, roughly."""

    def timings(self, call: Callable[[], object], seconds: float) -> list[float]:
        """Seconds of one call, measured once or more; `seconds` is what `warm_up` has found."""

    def graph_of(self, call: Callable[[], object]) -> Callable[[], object] | None:
        """What runs the same kernels again without Python; None where there is nothing like it."""

    def peak_extra_bytes(self, call: Callable[[], object]) -> int | None:
        """Peak memory of one call, its results included, above what was held before; or unknown."""

    def available_bytes(self) -> int | None:
        """Memory that tensors can still have; None if unknown."""

    def multiply_add_rate(self) -> MultiplyAddRate | None:
        """What the floor of a row is computed from; None where a dense layer serves as floor."""

    def versions(self) -> dict[str, str]:
        """Versions that the figures depend on, besides those of torch and this package."""

    def facts(self) -> dict[str, Any]:
        """What the device is, besides the processor, which is always reported."""


class CpuDevice:
    """The processor, with torch's number of threads."""

    kind = "cpu"

    def __init__(self, block_share: float = 1.0) -> None:
        """`block_share` makes timings shorter, and so noisier."""
        self._block_share = block_share

    def name(self) -> str:
        return cpu_model()

    def file_name(self) -> str:
        forced = [extension.current_isa()] if os.environ.get("FUSED_DROPOUT_ISA") else []
        return "-".join([slug(cpu_model()), *forced, f"{torch.get_num_threads()}t"])

    def measuring(self) -> AbstractContextManager[object]:
        return nullcontext()

    def warm_up(self, call: Callable[[], object]) -> float:
        call()
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def timings(self, call: Callable[[], object], seconds: float) -> list[float]:
        """One: the mean over a block of calls."""
        # Not torch.utils.benchmark, which loads torch's compiler tools and so warns without a GPU.
        calls = max(1, round(self._block_share * _BLOCK_SECONDS / seconds))
        return [timeit.timeit(call, number=calls) / calls]

    def graph_of(self, call: Callable[[], object]) -> Callable[[], object] | None:
        return None

    def peak_extra_bytes(self, call: Callable[[], object]) -> int | None:
        return memory.peak_extra_bytes(call)

    def available_bytes(self) -> int | None:
        return memory.available_bytes()

    def multiply_add_rate(self) -> MultiplyAddRate | None:
        return None

    def versions(self) -> dict[str, str]:
        return {}

    def facts(self) -> dict[str, Any]:
        return {}


CPU = CpuDevice()


def cpu_model() -> str:
    """The processor's name as the operating system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def slug(name: str) -> str:
    """`name` in lower case, with hyphens for all but letters and digits."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
