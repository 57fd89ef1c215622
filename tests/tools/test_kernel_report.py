"""bench/kernel_report.py: reading disassembly and resources, finding main loops, goals."""

from __future__ import annotations

import importlib.util
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.bench_scripts import script

FORWARD = "_ZN13fused_dropout11dropconnect12_GLOBAL__N_114forward_kernelIfLb0ELb0EEEvNS_9RngSourceE"
REGISTERS_ONLY = "REG:130 STACK:0 SHARED:1024 LOCAL:0"


report = script("kernel_report")

# What the report finds beside it, now that it has been imported.
from kernel_model import sass as machine_code  # noqa: E402
from kernel_model import tools  # noqa: E402


def sass(*instructions: str, name: str = FORWARD, arch: str = "sm_90") -> str:
    """What `cuobjdump -sass` prints for a function; the instructions are 16 bytes each."""
    lines = [f"\n\tcode for {arch}\n\t.target\t{arch}\n\n\t\tFunction : {name}"]
    lines.append('\t.headerflags\t@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"')
    for number, instruction in enumerate(instructions):
        predicate, _, rest = instruction.rpartition("|")
        lines.append(
            f"        /*{16 * number:04x}*/             {predicate:>6} {rest} ;"
            "                      /* 0x0000000000027919 */"
        )
        lines.append(" " * 70 + "/* 0x000e220000002100 */")
    return "\n".join([*lines, "\t\t..........\n\n"])


def resources(name: str = FORWARD, used: str = REGISTERS_ONLY) -> str:
    """What `cuobjdump -res-usage` prints for a function."""
    return (
        "\nResource usage:\n Common:\n  GLOBAL:28 CONSTANT[4]:224\n"
        f" Function {name}:\n  {used} CONSTANT[0]:536 TEXTURE:0 SURFACE:0 SAMPLER:0\n"
    )


def main_loop(*instructions: str) -> Counter[str]:
    _, functions = machine_code.parse_sass(sass(*instructions))
    return Counter(i.kind for i in machine_code.main_loop(functions[FORWARD]))


def test_sass_is_read() -> None:
    text = sass("IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28]", "@!P0|LDS.128 R4, [R2+0x10]", "EXIT")
    arch, functions = machine_code.parse_sass(text + sass("EXIT", name="other"))
    assert arch == "sm_90"
    assert {name: len(function) for name, function in functions.items()} == {FORWARD: 3, "other": 1}
    _, load, leave = functions[FORWARD]
    assert load == machine_code.Instruction(0x10, "@!P0", "LDS.128", "R4, [R2+0x10]")
    assert (load.base, load.kind) == ("LDS", "LDS.128")
    assert leave == machine_code.Instruction(0x20, "", "EXIT", "")


@pytest.mark.parametrize(
    ("opcode", "kind"),
    [
        ("LDS", "LDS"),
        ("LDS.U16", "LDS.U16"),
        ("LDG.E.64", "LDG.64"),
        ("STG.E.U8", "STG.U8"),
        ("IMAD.WIDE.U32", "IMAD"),
        ("IADD.64", "IADD"),
    ],
)
def test_kinds_keep_the_width_of_loads_and_stores(opcode: str, kind: str) -> None:
    assert machine_code.Instruction(0, "", opcode, "").kind == kind


def test_resources_are_read() -> None:
    text = resources(used="REG:40 STACK:16 SHARED:8192 LOCAL:8") + resources("other")
    read = report.parse_resources(text)
    assert read[FORWARD] == report.Resources(registers=40, stack=16, shared=8192, local=8)
    assert read["other"].registers == 130


def test_main_loop_is_the_innermost_with_most_multiply_adds() -> None:
    loop = main_loop(
        "MOV R0, RZ",
        "LDG.E R1, [R2]",  # 0x10: outer loop
        "LOP3.LUT R1, R1",  # 0x20: loop with more instructions
        "LOP3.LUT R1, R1",
        "@P1|BRA 0x20",
        "@P2|FFMA R3, R4, R5, R3",  # 0x50: the main loop
        "@P0|BRA 0x50",
        "@P3|BRA 0x10",
        "EXIT",
    )
    assert loop == {"FFMA": 1, "BRA": 1}


def test_rare_code_behind_the_end_makes_no_loop() -> None:
    loop = main_loop(
        "@P1|BRA 0x70",  # to the rare code
        "STS [R1], R2",  # 0x10: where it comes back
        "FFMA R3, R4, R5, R3",  # 0x20: the main loop
        "@P0|BRA 0x20",
        "EXIT",
        "BRA 0x50",  # padding that is never reached
        "NOP",
        "FFMA R3, R4, R5, R3",  # 0x70
        "BRA 0x10",
    )
    assert loop == {"FFMA": 1, "BRA": 1}


def test_a_subroutine_belongs_to_no_loop() -> None:
    loop = main_loop(
        "MOV R9, 0x30",
        "@P0|CALL.REL.NOINC 0x60",  # 0x10: the loop
        "FFMA R3, R4, R5, R3",
        "@!P0|FFMA R3, R4, R5, R3",
        "BRA.U !UP0, 0x10",
        "EXIT",
        "I2F.U64.RP R8, R8",  # 0x60: the division
        "FFMA R8, R8, R8, R8",
        "@P1|BRA 0x70",
        "RET.REL.NODEC R8 0x0",
    )
    assert loop == {"CALL": 1, "FFMA": 2, "BRA": 1}


def test_a_call_around_one_instruction_is_a_branch() -> None:
    loop = main_loop(
        "FFMA R3, R4, R5, R3",  # 0x00: the outer loop
        "FFMA R3, R4, R5, R3",  # 0x10: the main loop
        "FFMA R3, R4, R5, R3",
        "@P2|CALL.REL.NOINC 0x50",
        "BRA 0x10",
        "@P0|CALL.REL.NOINC 0x70",  # 0x50
        "BRA 0x0",
        "EXIT",
    )
    assert loop == {"FFMA": 2, "CALL": 1}


def test_a_loop_may_branch_within() -> None:
    """Then its blocks without multiply-adds are left out."""
    loop = main_loop(
        "@!P0|BRA P6, 0x30",  # 0x00: the loop
        "FFMA R3, R4, R5, R3",
        "LDS R4, [R6]",
        "@!P1|BRA 0x0",  # 0x30
        "EXIT",
    )
    assert loop == {"FFMA": 1, "LDS": 1}


def test_no_loop() -> None:
    assert not main_loop("FFMA R3, R4, R5, R3", "EXIT", "BRA 0x20", "NOP")


def loop_kernel(ffma: int, others: int, *before: str, **options: Any) -> Any:
    """A kernel whose loop has `ffma` FFMAs and `others` other instructions."""
    top = 16 * len(before)
    body = [*["FFMA R3, R4, R5, R3"] * ffma, *["R2P PR, R1"] * (others - 1), f"@P0|BRA {top:#x}"]
    text = sass(*before, *body, "EXIT", name=options.get("name", FORWARD))
    (kernel,) = report.kernels_of(text, resources(**options))
    return kernel


def test_goals() -> None:
    good = loop_kernel(60, 40)
    assert (good.name, good.architecture) == (
        "dropconnect::forward_kernel<float, false, false>",
        "sm_90",
    )
    assert good.share("FFMA") == 0.6
    assert good.loop["R2P"] == 39
    assert good.problems() == []
    assert loop_kernel(59, 41).problems() == [
        "dropconnect::forward_kernel<float, false, false> for sm_90: main loop is 59.0% FFMA, "
        "the goal is 60%"
    ]
    double = FORWARD.replace("IfL", "IdL")
    assert loop_kernel(1, 99, name=double).problems() == []


@pytest.mark.parametrize(
    ("before", "used", "said"),
    [
        (["STL [R1], R2", "STL.64 [R1+8], R2", "LDL R2, [R1]"], REGISTERS_ONLY, "2 stores, 1 load"),
        ([], "REG:9 STACK:8 SHARED:0 LOCAL:8", "0 stores"),
    ],
)
def test_local_memory_is_a_problem(before: list[str], used: str, said: str) -> None:
    double = FORWARD.replace("IfL", "IdL")
    (problem,) = loop_kernel(9, 1, *before, used=used, name=double).problems()
    assert problem.startswith(
        "dropconnect::forward_kernel<double, false, false> for sm_90: uses local memory"
    )
    assert said in problem


@pytest.mark.parametrize(
    ("demangled", "name"),
    [
        (
            "void fused_dropout::dropconnect::(anonymous namespace)::forward_kernel<float>("
            "fused_dropout::RngSource, fused_dropout::(anonymous namespace)::RealOf<float>::type*)",
            "dropconnect::forward_kernel<float>",
        ),
        (
            "void fused_dropout::outer_kernel<__nv_bfloat16, true>(a::View, long)",
            "outer_kernel<bf16, true>",
        ),
        ("void fused_dropout::outer_kernel<__half, false>(long)", "outer_kernel<fp16, false>"),
        (
            "fused_dropout::(anonymous namespace)::draw_groups_kernel(a::MaskRule)",
            "draw_groups_kernel",
        ),
        ("_Z6kernelv", "_Z6kernelv"),
    ],
)
def test_short_names(demangled: str, name: str) -> None:
    assert report.short_name(demangled) == name


def test_exit_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    kernel = loop_kernel(60, 40)
    monkeypatch.setattr(report, "kernels_in", lambda file, assemble_for: [kernel, kernel])
    monkeypatch.setattr(report, "built_extension", lambda: Path("_C.so"))
    assert report.main(["some.cubin"]) == 0
    assert "1 kernels: no local memory, goals met" in capsys.readouterr().out
    monkeypatch.setattr(report, "report_predictions", lambda words: pytest.fail("the model"))
    assert report.main(["--no-model"]) == 1  # the extension must have all goal kernels
    out = capsys.readouterr().out
    assert "dropconnect::gradients_kernel<float, true>: not in the extension" in out
    kernel = loop_kernel(50, 50)
    assert report.main(["some.cubin"]) == 1
    assert "50.0% FFMA" in capsys.readouterr().out


def test_nothing_to_report_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main(["missing.so"]) == 2
    assert capsys.readouterr().err == "kernel_report.py: error: missing.so does not exist\n"
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert report.main([__file__]) == 2
    assert "cuobjdump not found; put the CUDA toolkit on PATH" in capsys.readouterr().err


def has_tools() -> bool:
    try:
        tools.find_tool("cuobjdump")
    except tools.ReportError:
        return False
    return shutil.which("nvcc") is not None


@pytest.mark.skipif(not has_tools(), reason="needs nvcc and cuobjdump")
def test_a_compiled_kernel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "indexed.cu"
    source.write_text(
        "__global__ void indexed(int* out, int n) {\n"
        "  int local[64];\n"
        "  for (int i = 0; i < 64; ++i) local[(i * n) % 64] = i;\n"
        "  *out = local[n % 64];\n"
        "}\n"
    )
    assert report.main([str(source)]) == 1
    said = capsys.readouterr().out
    assert "missed  indexed for sm_80: uses local memory" in said
    assert "missed  indexed for sm_90: uses local memory" in said
