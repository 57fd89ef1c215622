"""Reading machine code and cubins."""

from __future__ import annotations

import re

import pytest
from kernel_model.block import Launch
from kernel_model.build import built
from kernel_model.cubin import RESERVED_SHARED, KernelInfo, read_cubin
from kernel_model.occupancy import blocks_at_once
from kernel_model.predict import main_addresses
from kernel_model.sass import Control, decode_control, parse_sass
from kernel_model.tools import find_tool, run

from cost_model.programs import launch, program

LISTING = """
	code for sm_90
		Function : kernel
	.headerflags	@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;           /* 0x00000a00ff017b82 */
                                                                    /* 0x000fe20000000800 */
        /*0010*/              @!P0 LDG.E.64 R10, desc[UR12][R2.64] ; /* 0x0000000c020a0981 */
                                                                    /* 0x001ea8000c1e1b00 */
        /*0020*/                   NOP;                             /* 0x0000000000007918 */
                                                                    /* 0x000fc00000000000 */
		..........
"""


def test_control_words_are_read() -> None:
    architecture, functions = parse_sass(LISTING)
    load_constant, load, nothing = functions["kernel"]
    assert architecture == "sm_90"
    assert load_constant.control == Control(1, 7, 7, 0)
    assert load.control == Control(4, 2, 7, 1)
    assert (load.predicate, load.operands) == ("@!P0", "R10, desc[UR12][R2.64]")
    assert nothing.control.stall == 0
    assert load.flags == ("E", "64")


def test_every_field_of_a_control_word() -> None:
    assert decode_control((9 | 3 << 5 | 5 << 8 | 0b101010 << 11) << 41) == Control(9, 3, 5, 42)


def test_main_loops_are_those_with_most_multiply_adds() -> None:
    ffma = "FFMA R0, R1, R2, R0"
    code = program(
        "MOV R0, RZ",
        *[ffma] * 4, "@P0 BRA 0x10",
        *[ffma] * 2, "@P1 BRA 0x60",
        *[ffma] * 1, "@P2 BRA 0x90",
        "EXIT",
    )  # fmt: skip
    assert main_addresses(code) == set(range(0x10, 0x90, 0x10))
    assert main_addresses(program("NOP", "@P0 BRA 0x0", "EXIT")) == set()


def kernel(registers: int, shared: int = RESERVED_SHARED) -> KernelInfo:
    return KernelInfo("kernel", registers, shared, (), 0x210, {})


@pytest.mark.parametrize(
    ("registers", "threads", "dynamic", "expected"),
    [
        (32, 256, 0, 8),
        (33, 256, 0, 6),  # registers are given in units of 8 for each thread
        (134, 128, 0, 3),
        (134, 128, 87552, 2),
        (160, 128, 54272, 3),
        (255, 1024, 0, 0),
        (16, 32, 0, 32),
        (64, 96, 0, 10),
    ],
)
def test_occupancy(registers: int, threads: int, dynamic: int, expected: int) -> None:
    assert blocks_at_once(kernel(registers), threads, dynamic) == expected


@pytest.mark.usefixtures("tools")
def test_cubins_say_what_cuobjdump_says() -> None:
    build = built("dropconnect")
    kernels = read_cubin(build.cubin)
    text = run([find_tool("cuobjdump"), "-res-usage", build.cubin])
    usage = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:\d+ SHARED:(\d+)", text)
    assert {name for name, *_ in usage} == kernels.keys()
    for name, registers, shared in usage:
        assert kernels[name].registers == int(registers)
        assert kernels[name].shared == max(RESERVED_SHARED, int(shared))


def test_a_launch_s_shared_memory() -> None:
    one: Launch = launch(shared=4096)
    assert one.shared == RESERVED_SHARED + 4096
    assert launch(threads=33).warps == 2
