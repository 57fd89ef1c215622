"""The emulation itself: what it is compiled to, and the intrinsics that the tests supply."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from simd_on_any_cpu.build import CSRC, HERE, LIBRARY, CannotBuild, built, without_switch

# An instruction with a VEX or EVEX prefix, or a register that only such instructions have.
AVX = re.compile(
    r"\t(?:v(?!err\b|erw\b|mcall\b)\w+|k(?:mov|ortest|and|or|unpck)\w*)\b|%[yz]mm\d|%k[0-7]"
)


def library(isa: str, emulated: bool) -> Path:
    try:
        return built(isa, emulated) / LIBRARY
    except CannotBuild as obstacle:
        pytest.skip(str(obstacle))


def avx_instructions(path: Path) -> list[str]:
    command = ["objdump", "-d", "--no-show-raw-insn", str(path)]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [line for line in listing.splitlines() if AVX.search(line)]


@pytest.mark.parametrize("isa", ["avx512", "avx2"])
def test_an_emulated_library_runs_on_any_processor(isa: str) -> None:
    assert not avx_instructions(library(isa, emulated=True))


def test_the_real_instructions_would_be_seen() -> None:
    library("avx512", emulated=True)  # for its requirements
    found = "\n".join(avx_instructions(library("avx512", emulated=False)))
    assert "%zmm" in found and "%k1" in found and "vpmuludq" in found


@pytest.mark.parametrize("isa", ["avx512", "avx2"])
def test_the_emulated_source_is_the_real_one_without_its_switch(isa: str) -> None:
    source = (CSRC / "cpu" / "simd" / f"isa_{isa}.cpp").read_text()
    stripped = without_switch(source)
    assert "target" not in stripped and "#pragma" not in stripped
    assert re.findall("#include.*", stripped) == re.findall("#include.*", source)


def test_the_entries_call_every_op() -> None:
    """A library without an op's table would test nothing of it."""
    text = (HERE / "entries.cpp").read_text()
    for path in CSRC.glob("cpu/simd/ops/*.h"):
        assert f'#include "cpu/{path.name}"' in text
        assert re.search(rf"\btable<({path.stem}::)?Kernels>", text)
