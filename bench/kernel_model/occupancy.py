"""How many blocks of a kernel a multiprocessor of sm_90 holds at a time.

The limits are those of compute capability 9.0 in the CUDA programming guide; registers are given to
warps in units of 256.
"""

from __future__ import annotations

from .cubin import KernelInfo

WARPS = 64
BLOCKS = 32
REGISTERS = 65536
REGISTER_UNIT = 256  # of a warp
SHARED = 228 * 1024
SHARED_UNIT = 128


def blocks_at_once(kernel: KernelInfo, threads: int, dynamic_shared: int) -> int:
    warps = -(-threads // 32)
    of_warp = -(-kernel.registers * 32 // REGISTER_UNIT) * REGISTER_UNIT
    # A quarter of the registers belongs to each scheduler, which has every fourth warp.
    warps_by_registers = REGISTERS // 4 // of_warp * 4
    shared = -(-(kernel.shared + dynamic_shared) // SHARED_UNIT) * SHARED_UNIT
    return min(BLOCKS, WARPS // warps, warps_by_registers // warps, SHARED // shared)
