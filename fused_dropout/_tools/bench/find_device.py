"""From `--device` to a device."""

from __future__ import annotations

from fused_dropout._core.extension import cuda_obstacle
from fused_dropout._tools.bench.cuda import CudaDevice
from fused_dropout._tools.bench.devices import CPU, CpuDevice, Device
from fused_dropout._tools.common import ArgumentError

_QUICK_BLOCK_SHARE = 0.3


def find_device(kind: str, *, quick: bool = False) -> Device:
    """The device for `--device`; ArgumentError, in one line, if nothing can be measured on it.

    `quick` asks for shorter timings, where that is a choice.
    """
    if kind == "cpu":
        return CpuDevice(_QUICK_BLOCK_SHARE) if quick else CPU
    obstacle = cuda_obstacle()
    if obstacle is not None:
        raise ArgumentError(f"--device {kind}: {'; '.join(obstacle)}")
    return CudaDevice.current()
