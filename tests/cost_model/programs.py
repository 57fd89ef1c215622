"""Hand-written machine code, executed."""

from __future__ import annotations

import numpy as np
from kernel_model.block import Launch, Trace
from kernel_model.cubin import RESERVED_SHARED, KernelInfo, Parameter
from kernel_model.execute import Machine
from kernel_model.memory import GlobalMemory
from kernel_model.registers import Array
from kernel_model.sass import Control, Instruction

NAME = "kernel"


def program(*lines: str) -> list[Instruction]:
    """Instructions of lines like "@P0 IADD3 R0, R1, R2, RZ"; each takes 16 bytes."""
    code = []
    for number, line in enumerate(lines):
        predicate, _, rest = line.rpartition("@")[2].partition(" ")
        if not line.startswith("@"):
            predicate, rest = "", line
        opcode, _, operands = rest.partition(" ")
        code.append(
            Instruction(16 * number, predicate and f"@{predicate}", opcode, operands, Control())
        )
    return code


def launch(
    threads: int = 32, blocks: int = 1, shared: int = 0, arguments: tuple[int, ...] = ()
) -> Launch:
    """Arguments are integers of 64 bits, from c[0x0][0x210] on."""
    parameters = tuple(Parameter(8 * k, 8) for k in range(len(arguments)))
    kernel = KernelInfo(NAME, 32, RESERVED_SHARED, parameters, 0x210, {})
    packed = tuple(argument.to_bytes(8, "little") for argument in arguments)
    return Launch(kernel, (blocks, 1, 1), (threads, 1, 1), shared, packed)


def machine(*lines: str, of: Launch | None = None, memory: GlobalMemory | None = None) -> Machine:
    """The program, not yet run. Its last instruction is EXIT."""
    code = program(*lines, "EXIT")
    return Machine(code, of or launch(), 0, memory or GlobalMemory())


def executed(*lines: str, of: Launch | None = None, memory: GlobalMemory | None = None) -> Machine:
    ready = machine(*lines, of=of, memory=memory)
    ready.run()
    return ready


def register(of: Machine, number: int) -> Array:
    """[warps, 32]"""
    return of.block.words[number]


def issued(trace: Trace, warps: int) -> list[int]:
    """How many instructions each warp has issued."""
    counts = np.zeros(warps, int)
    for first, end, took_part in trace.runs:
        counts += (end - first) * took_part
    return counts.tolist()
