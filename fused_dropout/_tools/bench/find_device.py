"""From `--device` to a device."""

from __future__ import annotations

from fused_dropout._core.extension import cuda_obstacle
from fused_dropout._tools.bench.cuda import CudaDevice
from fused_dropout._tools.bench.devices import CPU, Device
from fused_dropout._tools.common import ArgumentError


def find_device(kind: str) -> Device:
    """The device for `--device`; ArgumentError, in one line, if nothing can be measured on it."""
    if kind == "cpu":
        return CPU
    obstacle = cuda_obstacle()
    if obstacle is not None:
        raise ArgumentError(f"--device {kind}: {'; '.join(obstacle)}")
    return CudaDevice.current()
