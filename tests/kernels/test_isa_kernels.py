"""The SIMD bodies by themselves: they build without torch, and count groups in 48 bits.

A mask whose groups pass 2^32 holds half a trillion elements, so the drawing functions are called
directly here, on a few groups in the middle of it.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import numpy as np
import pytest
from support.compiling import compiler, shared_library
from support.paths import ROOT

from fused_dropout import reference

CSRC = ROOT / "csrc"
SOURCE = """
#include "common/mask.h"
#include "cpu/dispatch.h"
#include "cpu/mask.h"
extern "C" void draw(uint64_t seed, double p, int digits, uint64_t first, uint64_t stride,
                     int64_t count, uint32_t* out) {
  using namespace fused_dropout;
  const mask::Kernels& table = kernels<mask::Kernels>();
  table.draw_groups(make_mask_rule(seed, 5, 3, p, digits), first, stride, count, out);
}
extern "C" void use(const char* isa) { fused_dropout::set_isa(isa); }
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("isa")
    (folder / "simd_ops.h").write_text('#include "cpu/simd/ops/mask.h"')
    sources = [*sorted(CSRC.glob("cpu/simd/isa_*.cpp")), CSRC / "cpu" / "dispatch.cpp"]
    arguments = ("-O1", f"-I{CSRC}", f"-I{folder}", *map(str, sources))
    return shared_library(SOURCE, folder, *arguments)


def check_groups(
    library: ctypes.CDLL, isa: str, first: int, stride: int, p: float, count: int, digits: int = 16
) -> None:
    """What is drawn from `first` on equals the contract, and nothing else is written."""
    library.use(isa.encode())
    out = np.full(4 * count + 4, 0xDEADBEEF, dtype=np.uint32)
    library.draw(
        ctypes.c_uint64(3),
        ctypes.c_double(p),
        ctypes.c_int(digits),
        ctypes.c_uint64(first),
        ctypes.c_uint64(stride),
        ctypes.c_int64(count),
        out.ctypes.data_as(ctypes.c_void_p),
    )
    groups = (first + stride * np.arange(count, dtype=np.uint64)).astype(np.uint64)
    fraction = np.zeros((count, 128), dtype=np.uint64)
    for s in range(digits):
        fraction = 2 * fraction + reference.fraction_digit(s, groups, 3, 5, 3)
    kept = fraction < reference.threshold(p, digits)
    expected = np.packbits(kept, axis=1, bitorder="little").view("<u4")
    assert np.array_equal(out[: 4 * count].reshape(count, 4), expected)
    assert (out[4 * count :] == 0xDEADBEEF).all(), "wrote past the groups asked for"


@pytest.mark.parametrize("count", [1, 5, 8, 33])
@pytest.mark.parametrize("p", [0.5, 0.3])
@pytest.mark.parametrize("stride", [1, 7, 2**33 + 1])
@pytest.mark.parametrize("first", [0, 2**32 - 4, 2**47])
def test_groups(
    library: ctypes.CDLL, isa: str, first: int, stride: int, p: float, count: int
) -> None:
    check_groups(library, isa, first, stride, p, count)


@pytest.mark.parametrize("count", [15, 255, 256, 257, 700])
@pytest.mark.parametrize("digits", [1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 15, 16, 17, 31, 32])
def test_every_number_of_digits(library: ctypes.CDLL, isa: str, digits: int, count: int) -> None:
    """All of them decide: the last digit of T is 1. Groups leave as they are decided."""
    threshold = 2 * (2**digits // 5) + 1
    check_groups(library, isa, 11, 3, 1 - threshold / 2**digits, count, digits)


def test_upper_halves_differ_within_a_block(library: ctypes.CDLL, isa: str) -> None:
    check_groups(library, isa, 2**32 - 300, 1, 0.3, 700)


@pytest.mark.parametrize("isa", ["avx512", "avx2", "plain"])
def test_the_linker_can_merge_no_code_of_an_instruction_set(isa: str, tmp_path: Path) -> None:
    """A function that other files have too would be called on processors that cannot run it."""
    ops = sorted(CSRC.glob("cpu/simd/ops/*.h"))
    (tmp_path / "simd_ops.h").write_text("".join(f'#include "{path}"\n' for path in ops))
    flags = ["-std=c++17", "-O0", "-w", f"-I{CSRC}", f"-I{tmp_path}", "-c"]
    source = CSRC / "cpu" / "simd" / f"isa_{isa}.cpp"
    subprocess.run([compiler(), *flags, str(source), "-o", "isa.o"], cwd=tmp_path, check=True)
    command = ["nm", "-C", "--defined-only", "--extern-only", "isa.o"]
    symbols = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    names = [line.split(maxsplit=2)[2] for line in symbols.stdout.splitlines()]
    tables = [name for name in names if "fused_dropout::kernels_for<" in name]
    assert len({name for name in tables if name.endswith("Kernels>()")}) == len(ops)
    assert set(names) - set(tables) <= {"DW.ref.__gxx_personality_v0"}
