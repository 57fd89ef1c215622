"""What single instructions of sm_90 do, as the model executes them."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_model.registers import SassError

from cost_model.programs import executed, launch, machine, register

SET = (  # what the cases below start from
    "MOV R1, 0x5",
    "MOV R2, 0xfffffffd",  # -3
    "MOV R3, 0x80000001",
    "MOV R4, 0x3fc00000",  # 1.5f
    "MOV R5, 0xc0200000",  # -2.5f
    "MOV R6, 0xffffffff",
    "MOV R7, 0x1",
    "MOV R16, 0x0",
    "MOV R17, 0x3ff80000",  # R16 and R17: 1.5
)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("IADD3 R0, R1, R2, R7", 3),
        ("IADD3 R0, R1, -R7, RZ", 4),
        ("IADD3 R0, P0, R6, R7, RZ; IADD3.X R0, R1, ~R7, RZ, P0, !PT", 4),
        ("IADD3 R0, P0, RZ, -R7, RZ; IADD3.X R0, RZ, RZ, RZ, P0, !PT", 0),  # 0 >= 1: no carry
        ("IADD3 R0, P0, RZ, -RZ, RZ; IADD3.X R0, RZ, RZ, RZ, P0, !PT", 1),
        ("VIADD R0, R1, -0x1", 4),
        ("IMAD R0, R1, R2, R7", -14),
        ("IMAD.MOV.U32 R0, RZ, RZ, R2", -3),
        ("IMAD.SHL.U32 R0, R1, 0x4, RZ", 20),
        ("IMAD.WIDE.U32 R8, R6, R6, R16; IMAD.MOV R0, RZ, RZ, R9", 0x3FF80000 - 2),
        ("IMAD.WIDE R8, R2, R1, RZ; MOV R0, R9", -1),
        ("IMAD.HI.U32 R0, R6, R6, RZ", -2),
        ("IMAD.WIDE.U32 R8, P0, R6, R6, R6; SEL R0, R1, R7, P0", 5),
        ("IMAD.X R0, R1, 0x2, R7, PT", 12),
        ("LEA R0, R1, R7, 0x2", 21),
        ("LEA.HI R0, R3, R7, RZ, 0x1", 2),
        ("LEA.HI.X R0, R3, R7, RZ, 0x1, PT", 3),
        ("LEA.HI.X.SX32 R0, R2, RZ, 0x1, !PT", -1),
        ("LEA R0, -R1, R6, 0x1", -11),
        ("LOP3.LUT R0, R1, R7, R2, 0x96, !PT", 5 ^ 1 ^ -3),
        ("LOP3.LUT R0, R1, R7, R2, 0x1b, !PT", (~5 & ~1) | (~5 & 1 & -3) | (5 & ~1 & 2)),
        ("LOP3.LUT P0, RZ, R1, 0x2, RZ, 0xc0, !PT; SEL R0, R1, R7, P0", 1),
        ("PLOP3.LUT P0, PT, PT, PT, PT, 0x80, 0x0; SEL R0, R1, R7, P0", 5),
        ("SHF.L.U32 R0, R1, 0x2, RZ", 20),
        ("SHF.L.U32 R0, R1, 0x20, RZ", 0),
        ("SHF.L.W.U32 R0, R1, 0x21, RZ", 10),
        ("SHF.L.U64.HI R0, R3, 0x1, R7", 3),
        ("SHF.R.U32.HI R0, RZ, 0x1f, R3", 1),
        ("SHF.R.U32.HI R0, RZ, 0x20, R3", 0),
        ("SHF.R.S32.HI R0, RZ, 0x1f, R2", -1),
        ("SHF.R.U64 R0, R3, 0x4, R7", 0x18000000),
        ("SHF.R.S64 R0, R3, 0x3f, R2", -1),
        ("SHF.R.W.U32 R0, R3, 0x1, R3", 0xC0000000 - (1 << 32)),
        ("PRMT R0, R3, 0x9910, RZ", 0x00000001),  # the signs of byte 1
        ("PRMT R0, R3, 0xbb32, RZ", 0xFFFF8000 - (1 << 32)),
        ("POPC R0, R2", 31),
        ("BREV R0, R7", -(1 << 31)),
        ("FLO.U32 R0, R1", 2),
        ("FLO.U32.SH R0, R1", 29),
        ("SGXT R0, R1, 0x3", -3),
        ("IABS R0, R2", 3),
        ("VIMNMX R0, R1, R2, PT", -3),
        ("VIMNMX.U32 R0, R1, R2, PT", 5),
        ("VIADDMNMX.U32 R0, R1, R7, 0x4, !PT", 6),
        ("ISETP.GE.AND P1, PT, R2, RZ, PT; P2R R0, PR, RZ, 0x2", 0),
        ("ISETP.GE.U32.AND P1, P2, R2, RZ, PT; P2R R0, PR, R7, 0x6", 3),
        # 64-bit: (5, -3) against (1, -3); the high words are equal.
        ("ISETP.GT.U32.AND P0, PT, R1, R7, PT; ISETP.GT.AND.EX P0, PT, R2, R2, PT, P0; "
         "SEL R0, R1, R7, P0", 5),  # fmt: skip
        ("ISETP.NE.AND.EX P0, PT, R2, R2, PT, PT; SEL R0, R1, R7, P0", 5),
        ("ISETP.EQ.OR P0, PT, R1, R7, PT; SEL R0, R1, R7, P0", 5),
        ("R2P PR, R1, 0x7; P2R R0, PR, RZ, 0x7f", 5),
        ("R2P PR, R3.B3, 0x7f; P2R R0, PR, RZ, 0x7f", 0),
        ("R2UR UR4, R1; UIADD3 UR4, UR4, 0x1, URZ; MOV R0, UR4", 6),
        ("F2I.TRUNC.NTZ R0, R5", -2),
        ("F2I.NTZ R0, R5", -2),  # to even
        ("F2I.U32.TRUNC R0, R5", 0),
        ("FCHK P0, R4, RZ; SEL R0, R1, R7, P0", 5),
        ("FCHK P0, R4, R5; SEL R0, R1, R7, P0", 1),
        ("F2FP.BF16.F32.PACK_AB R0, R4, R5", 0x3FC0C020),
        ("F2FP.F16.F32.PACK_AB R0, R4, R5", 0x3E00C100),
        ("HFMA2.MMA R0, -RZ, RZ, 1.5, -2.5", 0x3E00C100),
        ("CS2R R8, SRZ; MOV R0, R9", 0),
        ("BMSK R0, 0x4, 0x3", 0x70),
    ],
)  # fmt: skip
def test_integers(lines: str, expected: int) -> None:
    done = executed(*SET, *lines.split("; "))
    assert register(done, 0).view(np.int32).tolist() == [[expected] * 32]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("FADD R0, R4, -R5", 4.0),
        ("FADD R0, |R5|, -1", 1.5),
        ("FMUL R0, R4, 0.5", 0.75),
        ("FFMA R0, R4, R5, R4", -2.25),
        ("FFMA.SAT R0, R4, R5, 0.5", 0.0),
        ("FFMA.RM R0, R4, 1.192092896e-08, 1", 1.0),
        ("FFMA.RP R0, R4, 1.192092896e-08, 1", float(np.nextafter(np.float32(1), np.float32(2)))),
        ("FMNMX R0, R4, +QNAN, !PT", 1.5),
        ("FSEL R0, -R4, R5, PT", -1.5),
        ("FSET.BF.GT.AND R0, R4, R5, PT", 1.0),
        ("MUFU.RCP R0, R5", -0.4),
        ("MUFU.EX2 R0, R4", 2**1.5),
        ("MUFU.COS R0, RZ", 1.0),
        ("FRND.TRUNC R0, R5", -2.0),
        ("I2FP.F32.S32 R0, R2", -3.0),
        ("I2F.U32.RP R0, 0x1000001", 16777218.0),
        ("F2F.F32.F64 R0, R16", 1.5),
        ("HADD2.F32 R0, -RZ, R18.H1_H1", -2.0),
    ],
)
def test_floats(line: str, expected: float) -> None:
    done = executed(*SET, "MOV R18, 0xc0003c00", line)  # two halves, -2 and 1
    assert register(done, 0).view(np.float32)[0, 0] == np.float32(expected)


@pytest.mark.parametrize(
    ("name", "expected"), [("LT", 0), ("GEU", 1), ("NE", 0), ("NEU", 1), ("NUM", 0), ("NAN", 1)]
)
def test_comparisons_with_nan(name: str, expected: int) -> None:
    done = executed(f"FSETP.{name}.AND P0, PT, RZ, +QNAN, PT", "P2R R0, PR, RZ, 0x1")
    assert register(done, 0)[0, 0] == expected


def test_doubles() -> None:
    done = executed(*SET, "DFMA R8, R16, -R16, R16", "DSETP.LT.AND P0, PT, R8, RZ, PT")
    bits = register(done, 8).astype(np.uint64) | register(done, 9).astype(np.uint64) << np.uint64(
        32
    )
    assert bits.view(np.float64)[0, 0] == 1.5 - 2.25
    assert done.block.predicates[0].all()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("SHFL.BFLY PT, R0, R1, 0x1, 0x1f", lambda lane: lane ^ 1),
        ("SHFL.BFLY PT, R0, R1, 0x10, 0x1f", lambda lane: lane ^ 16),
        ("SHFL.IDX PT, R0, R1, 0x3, 0x1f", lambda lane: 3),
        ("SHFL.IDX PT, R0, R1, 0x3, 0x181f", lambda lane: lane // 8 * 8 + 3),
        ("SHFL.UP PT, R0, R1, 0x2, RZ", lambda lane: lane - 2 if lane >= 2 else lane),
        ("SHFL.DOWN PT, R0, R1, 0x2, 0x1f", lambda lane: lane + 2 if lane < 30 else lane),
    ],
)
def test_shuffles(line: str, expected: object) -> None:
    done = executed("S2R R1, SR_TID.X", line)
    assert register(done, 0)[0].tolist() == [expected(lane) for lane in range(32)]  # type: ignore[operator]


def test_votes() -> None:
    lines = ("S2R R1, SR_LANEID", "ISETP.LT.AND P0, PT, R1, 0x4, PT")
    done = executed(*lines, "VOTE.ANY R0, P1, P0", "VOTE.ALL P2, P0", "P2R R2, PR, RZ, 0x7e")
    assert register(done, 0)[0].tolist() == [0xF] * 32
    assert register(done, 2)[0].tolist() == [2] * 32


def test_arguments_and_sizes() -> None:
    done = executed(
        "ULDC.64 UR4, c[0x0][0x210]", "MOV R0, UR4", "MOV R1, UR5",
        "MOV R6, 0x8", "LDC.64 R2, c[0x0][R6+0x210]",
        "LDC R4, c[0x0][0x0]", "LDC R5, c[0x0][0xc]",
        of=launch(64, 3, arguments=(7 << 32 | 5, 9)),
    )  # fmt: skip
    assert [int(register(done, number)[1, 31]) for number in range(6)] == [5, 7, 9, 0, 64, 3]


@pytest.mark.parametrize(
    "line",
    [
        "HMMA.16816.F32 R4, R8, R12, R4",
        "FFMA.XYZ R0, R1, R2, R3",
        "LDL R0, [R1]",
        "S2R R0, SR_CLOCKLO",
        "IADD3 R0, Q1, R2, R3",
        "BAR.ARV 0x0, 0x40",
    ],
)
def test_what_is_unknown_is_named(line: str) -> None:
    with pytest.raises(SassError, match=line.split()[0]) as caught:
        machine(line)
    assert "kernel" in str(caught.value)
