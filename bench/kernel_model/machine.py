"""The constants of the model: an H200, none of them measured on one.

Rates are those of the CUDA programming guide's table of arithmetic throughput for compute
capability 9.0, a quarter of them for each scheduler. Latencies of fixed-latency instructions stand
in the machine code. The others, and the bandwidths that are not from a data sheet, are estimates
from published measurements of sm_80 and sm_90: the first run on a GPU has to calibrate them, and
until then the error of predicted times is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass

CLOCK = 1.98e9  # data sheet, highest
MULTIPROCESSORS = 132
FFMA_RATE = MULTIPROCESSORS * 128 * CLOCK  # a second
COPY_BANDWIDTH = 4.3e12  # bytes read and written a second: 90 % of the data sheet's 4.8e12
L2_BANDWIDTH = 5.5e12  # estimate
MOST_BYTES = 64.0  # a cycle between L2 and one multiprocessor: estimate
LAUNCH_SECONDS = 2.5e-6  # from one kernel's end to the next one's work, in a stream: estimate

# Cycles, estimates.
L1_LATENCY = 35
L2_LATENCY = 290
DRAM_LATENCY = 750
OPERAND_LATENCY = 10
BARRIER_LATENCY = 20
BRANCH_CYCLES = 4
SHARED_LATENCY = {4: 24, 8: 26, 16: 30}  # by bytes of a lane
STORE_LATENCY = 14
SHUFFLE_LATENCY = 24
CONSTANT_LATENCY = 30
SPECIAL_REGISTER_LATENCY = 24
TO_UNIFORM_LATENCY = 12
MUFU_LATENCY = 22
CONVERSION_LATENCY = 16
DOUBLE_LATENCY = 16


@dataclass(frozen=True)
class Pipe:
    """A unit of one scheduler, and how long one instruction of a warp keeps it."""

    name: str
    cycles: int


NO_PIPE = Pipe("none", 0)
FMA = Pipe("fma", 2)  # one of two halves, whichever is free: 128 lanes a cycle
FMA_HEAVY = Pipe("fma heavy", 2)  # integer products: 64 lanes a cycle
WIDE_PRODUCT = Pipe("fma heavy", 4)
ALU = Pipe("alu", 2)  # 64 lanes
SPECIAL = Pipe("special", 8)  # 16 lanes
DOUBLE = Pipe("double", 2)  # 64 lanes
MEMORY = Pipe("memory", 2)
SHUFFLE = Pipe("memory", 4)  # 32 lanes
UNIFORM = Pipe("uniform", 2)

PIPES = ("none", "fma", "fma heavy", "alu", "special", "double", "memory", "uniform")

# By base opcode. One that is in none of them raises an error.
FMA_OPCODES = {"FFMA", "FADD", "FMUL", "HADD2", "HMUL2", "HFMA2"}
HEAVY_OPCODES = {"IMAD"}
ALU_OPCODES = {
    *("IADD3", "VIADD", "LEA", "LOP3", "SHF", "PRMT", "SGXT", "BMSK", "IABS", "MOV", "SEL"),
    *("ISETP", "FSETP", "FSET", "FSEL", "FMNMX", "VIMNMX", "IMNMX", "VIADDMNMX", "FCHK", "PLOP3"),
    *("P2R", "R2P", "F2FP", "I2FP", "CS2R", "VOTE"),
}
SPECIAL_OPCODES = {"MUFU", "F2I", "I2F", "F2F", "FRND", "POPC", "BREV", "FLO"}
DOUBLE_OPCODES = {"DFMA", "DADD", "DMUL", "DSETP"}
CONTROL_OPCODES = {
    *("BRA", "BRX", "BSSY", "BSYNC", "BREAK", "EXIT", "CALL", "RET", "NOP", "WARPSYNC", "YIELD"),
    *("BAR", "DEPBAR", "LDGDEPBAR", "MEMBAR", "ERRBAR", "CCTL", "ENDCOLLECTIVE", "BMOV"),
}
