"""A GPU as a benchmark's device: CUDA events, torch's memory counters, the rate of its lanes.

A timing is one call between two CUDA events, after the L2 cache was overwritten
(`triton.testing.do_bench`). While the GPU overwrites the cache the CPU already queues the call's
kernels; what it has not queued by then shows as a gap in the timing, as it does in training. A
replay of the call's CUDA graph, timed the same way, has no such gaps: it is the kernels' own time.
"""

from __future__ import annotations

import gc
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fused_dropout._tools.bench.devices import MultiplyAddRate, slug
from fused_dropout._tools.common import ArgumentError

_WARM_UP_MS = 10
_BLOCK_MS = 30  # the timings of a round take about this long
_CALLS_BEFORE_CAPTURE = 3  # on the side, for whatever is set up lazily
_SMI_FIELDS = ("driver_version", "clocks.max.sm")


@dataclass(frozen=True)
class Gpu:
    """What a GPU's figures depend on."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    memory_bytes: int
    driver: str  # "unknown" where nvidia-smi does not say
    clock_hz: float | None  # the highest of its multiprocessors
    clock_source: str = ""

    @classmethod
    def current(cls) -> Gpu:
        """torch's current CUDA device."""
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        smi = nvidia_smi(getattr(properties, "uuid", None))
        kilohertz = getattr(properties, "clock_rate", 0)  # 0, or not there, in some releases
        if kilohertz:
            clock_hz, clock_source = 1e3 * kilohertz, "device property"
        elif smi.get("clocks.max.sm", "").isdecimal():
            clock_hz, clock_source = 1e6 * int(smi["clocks.max.sm"]), "nvidia-smi"
        else:
            clock_hz, clock_source = None, ""
        return cls(
            properties.name,
            (properties.major, properties.minor),
            properties.multi_processor_count,
            properties.total_memory,
            smi.get("driver_version") or "unknown",
            clock_hz,
            clock_source,
        )

    def fp32_lanes(self) -> int:
        """fp32 multiply-adds per clock and multiprocessor.

        CUDA C++ Programming Guide, "Arithmetic Instructions": 64 for 7.x and 8.0, 128 for 8.6 and
        all that came after.
        """
        return 64 if self.capability[0] == 7 or self.capability == (8, 0) else 128


def nvidia_smi(uuid: object) -> dict[str, str]:
    """What nvidia-smi says about the GPU with this UUID, by field; empty where it does not."""
    command = ["nvidia-smi", f"--query-gpu={','.join(_SMI_FIELDS)}"]
    command += ["--format=csv,noheader,nounits", f"--id=GPU-{uuid}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = (value.strip() for value in done.stdout.split(","))
    return dict(zip(_SMI_FIELDS, values, strict=False))


class CudaDevice:
    """torch's current CUDA device."""

    kind = "cuda"

    def __init__(self, gpu: Gpu, do_bench: Callable[..., Any], triton_version: str) -> None:
        self.gpu = gpu
        self._do_bench = do_bench
        self._triton_version = triton_version

    @classmethod
    def current(cls) -> CudaDevice:
        """Raises ArgumentError where triton, which times the calls, is missing."""
        try:
            import triton
            from triton.testing import do_bench
        except ImportError:
            raise ArgumentError(
                "--device cuda needs triton, which comes with torch's CUDA builds: "
                "pip install triton"
            ) from None
        return cls(Gpu.current(), do_bench, triton.__version__)

    def name(self) -> str:
        return self.gpu.name

    def file_name(self) -> str:
        return slug(self.gpu.name)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """fp32 products are computed in fp32, not in TF32."""
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    def warm_up(self, call: Callable[[], object]) -> float:
        call()
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    def timings(self, call: Callable[[], object], seconds: float) -> list[float]:
        """As many as fit in a block, and at least one."""
        milliseconds = self._do_bench(call, warmup=_WARM_UP_MS, rep=_BLOCK_MS, return_mode="all")
        return [sample / 1e3 for sample in milliseconds]

    def graph_of(self, call: Callable[[], object]) -> Callable[[], object]:
        """The replay of a CUDA graph of one call."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_CALLS_BEFORE_CAPTURE):
                call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()
        replay: Callable[[], object] = graph.replay
        return replay

    def peak_extra_bytes(self, call: Callable[[], object]) -> int | None:
        gc.collect()
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        kept_until_read = call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated()
        del kept_until_read
        return max(0, peak - before)

    def available_bytes(self) -> int | None:
        """Free on the GPU, and what torch's allocator holds without using it."""
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()

    def multiply_add_rate(self) -> MultiplyAddRate | None:
        gpu = self.gpu
        if gpu.clock_hz is None:
            return None
        return MultiplyAddRate(
            gpu.multiprocessors, gpu.fp32_lanes(), gpu.clock_hz, gpu.clock_source
        )

    def versions(self) -> dict[str, str]:
        return {"cuda": torch.version.cuda or "", "triton": self._triton_version}

    def facts(self) -> dict[str, Any]:
        return {
            "gpu": self.gpu.name,
            "driver": self.gpu.driver,
            "compute_capability": "{}.{}".format(*self.gpu.capability),
            "multiprocessors": self.gpu.multiprocessors,
            "memory_bytes": self.gpu.memory_bytes,
            "clock_hz": self.gpu.clock_hz,
        }
