"""Threads that part, meet and wait, and memory, in hand-written machine code."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_model.memory import FIRST_ADDRESS, GlobalMemory, wavefronts_of
from kernel_model.registers import SassError

from cost_model.programs import executed, issued, launch, machine, register

LANE = "S2R R1, SR_TID.X"


def test_branches_meet_where_they_should() -> None:
    done = machine(
        LANE,
        "ISETP.LT.AND P0, PT, R1, 0x8, PT",
        "BSSY B0, 0x80",
        "@P0 BRA 0x60",
        "MOV R0, 0x2",
        "BRA 0x70",
        "MOV R0, 0x1",  # 0x60
        "BSYNC B0",  # 0x70
        "VIADD R0, R0, 0x10",  # 0x80: once, by all
    )
    trace = done.run()
    assert register(done, 0)[0].tolist() == [0x11] * 8 + [0x12] * 24
    assert issued(trace, 1) == [4 + 2 + 1 + 2 + 2]  # BSYNC on each of the two ways


def test_code_behind_the_end_is_waited_for() -> None:
    done = machine(
        LANE,
        "ISETP.EQ.AND P0, PT, R1, RZ, PT",
        "BSSY B0, 0x50",
        "@P0 BRA 0x70",
        "BSYNC B0",  # 0x40
        "MOV R0, 0x1",  # 0x50: once
        "EXIT",
        "MOV R2, 0x1",  # 0x70
        "BRA 0x40",
    )
    trace = done.run()
    assert issued(trace, 1) == [4 + 2 + 2 + 2]  # BSYNC twice


def test_a_loop() -> None:
    done = machine(
        LANE,
        "MOV R0, RZ",
        "BSSY B1, 0x60",
        "VIADD R0, R0, 0x1",  # 0x30
        "ISETP.LT.AND P0, PT, R0, R1, PT",
        "@P0 BRA 0x30",
        "BSYNC B1",
        "MOV R2, 0x1",
        of=launch(64),
    )
    trace = done.run()
    lanes = np.arange(64).reshape(2, 32)
    assert (register(done, 0) == np.maximum(lanes, 1)).all()
    # Some lanes wait while others go on, so BSYNC is issued again and again, the rest once.
    before_and_after = 3 + 2
    for warp, count in enumerate(issued(trace, 2)):
        loops = 32 * warp + 31
        meetings = count - before_and_after - 3 * loops
        assert 1 <= meetings <= 32


def test_a_subroutine_returns_to_its_callers() -> None:
    done = executed(
        LANE,
        "ISETP.LT.AND P0, PT, R1, 0x8, PT",
        "@P0 MOV R4, 0x40",
        "@P0 CALL.REL.NOINC 0x80",
        "@!P0 MOV R4, 0x60",  # 0x40
        "@!P0 CALL.REL.NOINC 0x80",
        "EXIT",  # 0x60
        "NOP",
        "IADD3 R0, R0, R1, RZ",  # 0x80
        "RET.REL.NODEC R4 0x0",
    )
    assert register(done, 0)[0].tolist() == list(range(32))


def test_a_jump_by_table() -> None:
    done = executed(
        LANE,
        "LOP3.LUT R1, R1, 0x1, RZ, 0xc0, !PT",
        "IMAD R2, R1, 0x20, RZ",
        "BRX R2 0x0",  # from 0x40 on
        "MOV R0, 0x5",
        "EXIT",
        "MOV R0, 0x6",
    )
    assert register(done, 0)[0].tolist() == [5, 6] * 16


def test_a_barrier_holds_all_warps() -> None:
    done = executed(
        LANE,
        "IMAD.SHL.U32 R2, R1, 0x4, RZ",
        "STS [R2+0x400], R1",
        "BAR.SYNC.DEFER_BLOCKING 0x0",
        "LOP3.LUT R3, R2, 0xfc, RZ, 0x3c, !PT",  # the opposite thread
        "LDS R0, [R3+0x400]",
        of=launch(64, shared=256),
    )
    assert register(done, 0).ravel().tolist() == list(range(63, -1, -1))


def test_a_barrier_that_some_never_reach() -> None:
    stuck = machine(
        LANE,
        "ISETP.LT.AND P0, PT, R1, 0x20, PT",
        "@P0 BAR.SYNC.DEFER_BLOCKING 0x0",
        "@P0 BAR.SYNC.DEFER_BLOCKING 0x1",
        "@!P0 BAR.SYNC.DEFER_BLOCKING 0x1",
        of=launch(64),
    )
    with pytest.raises(SassError, match="wait for others"):
        stuck.run()


def test_a_shuffle_of_parted_threads() -> None:
    parted = machine(LANE, "ISETP.LT.AND P0, PT, R1, 0x8, PT", "BSSY B0, 0x60", "@!P0 BRA 0x50",
                     "BRA.DIV UR4, 0x0", "BSYNC B0")  # fmt: skip
    with pytest.raises(SassError, match="parted before a shuffle"):
        parted.run()


def memory_with(*values: int) -> GlobalMemory:
    memory = GlobalMemory()
    memory.allocate("in", "uint32", 4 * len(values), in_dram=True)
    memory.array("in", np.uint32)[:] = values
    memory.allocate("out", "uint32", 4 * len(values), in_dram=False)
    return memory


def addresses(memory: GlobalMemory) -> tuple[int, ...]:
    return tuple(region.address for region in memory.regions.values())


COPY = (
    LANE,
    "LDC.64 R2, c[0x0][0x210]",
    "LDC.64 R4, c[0x0][0x218]",
    "IMAD.WIDE.U32 R2, R1, 0x4, R2",
    "IMAD.WIDE.U32 R4, R1, 0x4, R4",
)


def test_loads_and_stores_and_their_sectors() -> None:
    memory = memory_with(*range(100, 132))
    copy = machine(
        *COPY, "LDG.E R0, desc[UR6][R2.64]", "LDG.E R0, desc[UR6][R2.64]",
        "STG.E desc[UR6][R4.64], R0", of=launch(arguments=addresses(memory)), memory=memory,
    )  # fmt: skip
    first, again, store = copy.run().accesses
    assert memory.array("out", np.uint32).tolist() == list(range(100, 132))
    costs = [tuple(int(part[0]) for part in access) for access in (first, again, store)]
    # Lines, sectors that were there, from L2, from DRAM.
    assert costs == [(1, 0, 4, 4), (1, 4, 0, 0), (1, 0, 4, 0)]


def test_a_strided_load_takes_a_sector_for_each_lane() -> None:
    memory = memory_with(*range(32 * 8))
    load = machine(
        LANE, "LDC.64 R2, c[0x0][0x210]", "IMAD.WIDE.U32 R2, R1, 0x20, R2",
        "LDG.E.U16 R0, desc[UR6][R2.64]", of=launch(arguments=addresses(memory)), memory=memory,
    )  # fmt: skip
    (access,) = load.run().accesses
    assert (access.wavefronts[0], access.l2[0]) == (8, 32)
    assert register(load, 0)[0].tolist() == list(range(0, 256, 8))


def test_what_no_lane_accesses_costs_nothing() -> None:
    idle = machine("@!PT LDG.E R0, desc[UR6][R2.64]")
    (access,) = idle.run().accesses
    assert [int(part[0]) for part in access] == [0, 0, 0, 0]


def test_copies_to_shared_memory() -> None:
    memory = memory_with(*range(64))
    copied = executed(
        LANE, "LDC.64 R2, c[0x0][0x210]", "IMAD.WIDE.U32 R2, R1, 0x8, R2",
        "IMAD R4, R1, 0x8, RZ",
        "LDGSTS.E.64 [R4+0x400], desc[UR6][R2.64]",
        "LDGDEPBAR", "DEPBAR.LE SB0, 0x0",
        "LDS.64 R6, [R4+0x400]",
        "VIADD R2, R2, 0x4",  # 4 of the 8 bytes
        "LDGSTS.E.64.ZFILL [R4+0x400], desc[UR6][R2.64], PT",
        "LDS.64 R8, [R4+0x400]",
        "LDGSTS.E.64.ZFILL [R4+0x400], desc[UR6][RZ.64], !PT",
        "LDS.64 R10, [R4+0x400]",
        of=launch(shared=256, arguments=addresses(memory)), memory=memory,
    )  # fmt: skip
    lanes = np.arange(32)
    assert (register(copied, 6)[0] == 2 * lanes).all()
    assert (register(copied, 7)[0] == 2 * lanes + 1).all()
    assert (register(copied, 8)[0] == 2 * lanes).all()
    assert not register(copied, 9).any() and not register(copied, 10).any()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("LDG.E R0, desc[UR6][RZ.64]", "outside of all arrays"),
        ("LDG.E.64 R0, desc[UR6][R2.64+0x4]", "not aligned"),
        ("STG.E desc[UR6][R2.64+0x1000000], R0", "outside of all arrays"),
        ("LDS R0, [RZ+0x600]", "outside of shared memory"),
        ("STS.128 [RZ+0x408], R0", "not aligned"),
    ],
)
def test_wrong_addresses(line: str, said: str) -> None:
    memory = memory_with(1, 2, 3, 4)
    of = launch(shared=512, arguments=addresses(memory))
    wrong = machine("LDC.64 R2, c[0x0][0x210]", line, of=of, memory=memory)
    with pytest.raises(SassError, match=said) as caught:
        wrong.run()
    assert line in str(caught.value)


LANES = np.arange(32)


@pytest.mark.parametrize(
    ("addresses", "size", "expected"),
    [
        (LANES * 4, 4, 1),
        (LANES * 0, 4, 1),
        (LANES * 8, 4, 2),
        (LANES * 128, 4, 32),
        (LANES * 132, 4, 1),
        (LANES * 2, 2, 1),
        (LANES * 8, 8, 2),
        (LANES // 2 * 8, 8, 1),
        (LANES * 16, 16, 4),
        (LANES // 2 * 16, 16, 2),
        (LANES * 0, 16, 2),
        (LANES % 8 * 144, 16, 4),
        (LANES % 8 * 128, 16, 32),
    ],
)
def test_wavefronts(addresses: np.ndarray, size: int, expected: int) -> None:
    everyone = np.ones(32, bool)
    assert wavefronts_of(addresses + 1024, size, everyone) == expected
    assert wavefronts_of(addresses + 1024, size, LANES == 5) == 1


def test_an_array_is_found_again_but_not_with_another_size() -> None:
    memory = GlobalMemory()
    address = memory.allocate("sums", "float32", 64, in_dram=False)
    assert address >= FIRST_ADDRESS
    assert memory.allocate("sums", "float32", 64, in_dram=False) == address
    with pytest.raises(SassError, match="sums has 64 bytes, not 128"):
        memory.allocate("sums", "float32", 128, in_dram=False)
