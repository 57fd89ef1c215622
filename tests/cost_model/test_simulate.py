"""The simulated multiprocessor, on traces whose times are known."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from kernel_model import machine as m
from kernel_model import simulate as simulator
from kernel_model.registers import SassError
from kernel_model.sass import Control, Instruction
from kernel_model.simulate import Simulated, WarpTrace, simulate
from kernel_model.tools import ReportError

Access = tuple[int, int, int]  # wavefronts, sectors of L2, and of DRAM
ADD, PRODUCT, MULTIPLY_ADD = "IADD3 R0, R1, R2, RZ", "IMAD R0, R1, R2, R3", "FFMA R0, R1, R2, R0"


@pytest.fixture(autouse=True)
def compiled() -> None:
    """Without a C++ compiler the tests show as skipped."""
    try:
        simulator._library()
    except ReportError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def round_numbers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of the constants that a GPU will change."""
    for name, value in (
        ("L1_LATENCY", 30), ("L2_LATENCY", 200), ("DRAM_LATENCY", 500), ("OPERAND_LATENCY", 10),
        ("BARRIER_LATENCY", 20), ("BRANCH_CYCLES", 5),
        ("COPY_BANDWIDTH", 16 * m.MULTIPROCESSORS * m.CLOCK),
        ("L2_BANDWIDTH", 32 * m.MULTIPROCESSORS * m.CLOCK),
    ):  # fmt: skip
        monkeypatch.setattr(m, name, value)
    yield


def code_of(*lines: str, stall: int = 1, **controls: Control) -> list[Instruction]:
    """Instructions; `controls` are those of some, "at_2" of the third."""
    code = []
    for number, line in enumerate(lines):
        opcode, _, operands = line.partition(" ")
        control = controls.get(f"at_{number}", Control(stall))
        code.append(Instruction(16 * number, "", opcode, operands, control))
    return code


def straight(code: list[Instruction], *accesses: Access) -> WarpTrace:
    """A warp that executes the code once."""
    return trace_of(range(len(code)), *accesses)


def trace_of(numbers: range | list[int], *accesses: Access) -> WarpTrace:
    columns = np.array(accesses, np.int32).reshape(-1, 3).T
    return WarpTrace(np.array(list(numbers), np.int32), *columns)


def run(code: list[Instruction], *warps: WarpTrace, blocks: int = 1, resident: int = 1) -> Simulated:
    return simulate(code, [warps], blocks, resident)


def test_stall_counts() -> None:
    code = code_of(*["NOP"] * 10, stall=4)
    done = run(code, straight(code))
    assert (done.cycles, done.issued) == (9 * 4 + 1, 10)
    assert done.waits["stall count"] == 9 * 3


@pytest.mark.parametrize(
    ("line", "each"),
    [
        ("NOP", 1),
        (MULTIPLY_ADD, 1),
        ("FADD R0, R1, R2", 1),
        (PRODUCT, 2),
        (ADD, 2),
        ("IMAD.WIDE.U32 R0, R2, R3, RZ", 4),
        ("MUFU.EX2 R0, R1", 8),
        ("DFMA R0, R2, R4, R0", 2),
        ("SHFL.BFLY PT, R0, R1, 0x1, 0x1f", 4),
        ("UIADD3 UR4, UR5, UR6, URZ", 2),
    ],
)
def test_pipes(line: str, each: int) -> None:
    code = code_of(*[line] * 50)
    assert run(code, straight(code)).cycles == 49 * each + 1
    # Four schedulers have a pipe each; eight warps share them.
    assert run(code, *[straight(code)] * 4).cycles == 49 * each + 1
    assert run(code, *[straight(code)] * 8).cycles == 99 * each + 1


def test_pipes_work_beside_each_other() -> None:
    code = code_of(*[PRODUCT, ADD, MULTIPLY_ADD, "NOP"] * 10)
    assert run(code, straight(code)).cycles == 40


def test_a_scoreboard_is_waited_for() -> None:
    code = code_of(
        "LDS R0, [R1]", "NOP", ADD, at_0=Control(1, write_barrier=2), at_2=Control(1, wait_mask=4)
    )
    done = run(code, straight(code, (1, 0, 0)))
    arrival = 1 + m.SHARED_LATENCY[4]
    assert done.cycles == arrival + 1
    assert done.waits["other scoreboards"] == arrival - 2
    other = code_of(
        "LDS R0, [R1]", "NOP", ADD, at_0=Control(1, write_barrier=2), at_2=Control(1, wait_mask=3)
    )
    assert run(other, straight(other, (1, 0, 0))).cycles == 3


def test_operands_are_waited_for() -> None:
    code = code_of("STS [R1], R0", ADD, at_0=Control(1, read_barrier=0), at_1=Control(1, wait_mask=1))
    assert run(code, straight(code, (1, 0, 0))).cycles == 1 + 10 + 1


@pytest.mark.parametrize(
    ("access", "arrival"),
    [((1, 0, 0), 1 + 30), ((4, 16, 0), 4 + 16 + 200), ((4, 16, 16), 4 + 32 + 500)],
)
def test_where_a_load_comes_from(access: Access, arrival: int) -> None:
    code = code_of(
        "LDG.E R0, desc[UR4][R2.64]", ADD,
        at_0=Control(1, write_barrier=0), at_1=Control(1, wait_mask=1),
    )  # fmt: skip
    done = run(code, straight(code, access))
    assert done.cycles == arrival + 1
    assert done.waits["global memory"] == arrival - 1


def test_what_is_predicated_off_takes_a_slot_only() -> None:
    code = code_of(
        "LDG.E R0, desc[UR4][R2.64]", ADD,
        at_0=Control(1, write_barrier=0), at_1=Control(1, wait_mask=1),
    )  # fmt: skip
    assert run(code, straight(code, (0, 0, 0))).cycles == 2


def test_wavefronts_pass_one_after_another() -> None:
    code = code_of(*["LDS.128 R0, [R1]"] * 20)
    warps = [straight(code, *[(4, 0, 0)] * 20)] * 4
    done = run(code, *warps)
    assert done.wavefronts == 4 * 20 * 4
    late = code_of(
        *["LDS.128 R0, [R1]"] * 20, ADD,
        at_19=Control(1, write_barrier=0), at_20=Control(1, wait_mask=1),
    )  # fmt: skip
    warps = [straight(late, *[(4, 0, 0)] * 20)] * 4
    assert run(late, *warps).cycles == 4 * 20 * 4 + m.SHARED_LATENCY[16] + 1


def test_dram_s_bandwidth() -> None:
    code = code_of(*["LDG.E.128 R0, desc[UR4][R2.64]"] * 100)
    warps = [straight(code, *[(4, 16, 16)] * 100)] * 8
    seconds_of_bytes = 8 * 100 * 512 / 16
    assert run(code, *warps).cycles == pytest.approx(seconds_of_bytes + 500, abs=10)
    stores = code_of(*["STG.E.128 desc[UR4][R2.64], R0"] * 100)
    assert run(stores, *warps).cycles == pytest.approx(seconds_of_bytes, abs=10)


def test_a_barrier_waits_for_the_last_warp() -> None:
    slow = [0, 0, 0, 1, 2]
    code = code_of("NOP", "BAR.SYNC.DEFER_BLOCKING 0x0", "NOP", at_0=Control(15))
    done = run(code, trace_of([1, 2]), trace_of(slow))
    jumps = 2 * 5
    assert done.cycles == 3 * 15 + jumps + 20 + 1
    assert done.waits["barrier"] >= 3 * 15 + jumps


def test_a_warp_that_has_ended_holds_up_no_barrier() -> None:
    code = code_of("NOP", "BAR.SYNC.DEFER_BLOCKING 0x0", "NOP")
    assert run(code, trace_of([0]), trace_of([1, 2])).cycles <= 1 + 20 + 1


@pytest.mark.parametrize(("groups_left", "arrival"), [(1, 1 + 16 + 200), (0, 1 + 32 + 200)])
def test_groups_of_copies(groups_left: int, arrival: int) -> None:
    copy = "LDGSTS.E.BYPASS.128 [R0], desc[UR4][R2.64]"
    code = code_of(copy, "LDGDEPBAR", copy, "LDGDEPBAR", f"DEPBAR.LE SB0, {groups_left:#x}", "NOP")
    done = run(code, straight(code, (1, 16, 0), (1, 16, 0)))
    assert done.waits["global memory"] == pytest.approx(arrival - len(code), abs=5)


def test_a_jump_takes_longer() -> None:
    code = code_of("NOP", "NOP")
    assert run(code, trace_of([0, 1])).cycles == 2
    assert run(code, trace_of([1, 0])).cycles == 2 + 5


def test_blocks_follow_each_other() -> None:
    code = code_of(*["MUFU.RCP R0, R1"] * 10)
    one = run(code, straight(code)).cycles
    assert run(code, straight(code), blocks=3, resident=1).cycles == pytest.approx(3 * one, abs=20)
    assert run(code, straight(code), blocks=4, resident=4).cycles == one
    long = [straight(code)], [trace_of(list(range(5)))]
    assert simulate(code, long, 4, 1).issued == 2 * (10 + 5)


def test_few_multiprocessors_share_the_bandwidth() -> None:
    assert simulator.dram_share(m.MULTIPROCESSORS) == pytest.approx(16)
    assert simulator.dram_share(66) == pytest.approx(32)
    assert simulator.dram_share(1) == simulator.l2_share(1) == m.MOST_BYTES


def test_an_instruction_without_a_pipe_is_named() -> None:
    code = code_of("HMMA.16816.F32 R4, R8, R12, R4")
    with pytest.raises(SassError, match="HMMA"):
        run(code, straight(code))
