"""The CPU kernels take as many instructions as baselines.json says, and slower ones would show."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from simd_on_any_cpu.build import CSRC, LIBRARY, CannotBuild, build

from instruction_counts import count
from instruction_counts.loops import disassembled, main_loops


def measured(isa: str) -> count.Counts:
    """Skips the test where this machine cannot count."""
    try:
        return count.measured(isa)
    except CannotBuild as obstacle:
        pytest.skip(str(obstacle))


@pytest.mark.parametrize("isa", count.ISAS)
def test_counts_are_those_of_the_baselines(isa: str) -> None:
    now = measured(isa)
    try:
        expected, same_release = count.baseline(isa)
    except CannotBuild as obstacle:
        pytest.skip(str(obstacle))
    tolerance = count.TOLERANCE if same_release else count.TOLERANCE_OF_OTHER_RELEASES
    lines = count.differences(now, expected, tolerance)
    assert not lines, "\n".join([f"{isa}: {count.REWRITE}", *lines])


def edited_library(folder: Path, isa: str, path: str, edit: Callable[[str], str]) -> Path:
    """The kernels of sources of which one file is edited."""
    sources = folder / "csrc"
    for part in ("common", "cpu"):
        shutil.copytree(CSRC / part, sources / part)
    file = sources / path
    text = edit(file.read_text())
    assert text != file.read_text(), f"{path} is not what this test edits"
    file.write_text(text)
    build(isa, emulated=False, folder=folder, csrc=sources)
    return folder / LIBRARY


@pytest.mark.slow
def test_two_more_rounds_of_philox_show(tmp_path: Path) -> None:
    """A sixth of the drawing: seen wherever drawing is a fifth of the work."""
    isa = "avx2" if count.obstacle("avx2") is None else "plain"
    before = measured(isa)
    library = edited_library(
        tmp_path,
        isa,
        "common/philox.h",
        lambda text: text.replace("kPhiloxRounds = 10", "kPhiloxRounds = 12"),
    )
    lines = count.differences(count.callgrind_counts(library), before, count.TOLERANCE)
    slower = {line.partition(":")[0] for line in lines if "(+" in line}
    drawn = {"mask bits, 1 digit", "mask bits, 16 digits", "dropconnect forward float32, p 0.1"}
    assert drawn <= slower
    drawn_before = {"dropconnect forward float32, stored", "dropout of columns, float32"}
    assert not drawn_before & slower


# Adding 0 to the sums changes -0, so no compiler may leave it out.
NEEDLESS_ADDITION = """
#include <immintrin.h>
#define _mm512_mask3_fmadd_ps(a, b, c, k) \\
  _mm512_mask3_fmadd_ps(a, b, _mm512_add_ps(c, _mm512_setzero_ps()), k)
"""


@pytest.mark.slow
def test_a_needless_addition_in_the_main_loop_shows(tmp_path: Path) -> None:
    """One for each masked multiply-add of AVX-512 floats."""
    before = measured("avx512")
    header = tmp_path / "needless_addition.h"
    header.write_text(NEEDLESS_ADDITION)
    flags = ("-include", str(header))
    build("avx512", emulated=False, folder=tmp_path, flags=flags, ops="dropconnect.h")
    now = count.per_work(count.loop_mixes(tmp_path / LIBRARY, "dropconnect"))
    before = {name: before[name] for name in now}
    lines = count.differences(now, before, count.TOLERANCE)
    slower = {line.partition(":")[0] for line in lines if "(+" in line}
    assert {"dropconnect forward float32", "dropconnect backward float32"} <= slower
    assert not any("float64" in name for name in slower)


def test_differences() -> None:
    lines = count.differences({"a": 102.0, "b": 96.0, "c": 1.0}, {"a": 100, "b": 100, "d": 1}, 0.03)
    assert lines == ["b: 100 -> 96 (-4.0%)", "c: has no baseline", "d: not measured"]
    assert count.differences({"a": 104.0}, {"a": 100}, 0.03) == ["a: 100 -> 104 (+4.0%)"]
    before, spilled = {"a": 100.0, "a: store": 1.0, "a: load": 9.0}, {"a": 101.0, "a: store": 5.0}
    lines = count.differences({**before, **spilled}, before, 0.03)
    assert lines == ["a: store: 1 -> 5 (+4.0%)"]


LOOPS = """
namespace fused_dropout::some_op { namespace {
__attribute__((noinline)) void dot(const double* x, const double* y, int n, double* sum) {
  for (int r = 0; r < 9; ++r) {
    sum[r] = 0;
    for (int k = 0; k < n; ++k) sum[r] = __builtin_fma(x[k], y[k], sum[r]);
  }
}
template <class T> __attribute__((noinline)) void kernel(const T* x, const T* y, int n, T* sum) {
  for (int k = 0; k < n; ++k) sum[k] += 1;
  dot(x, y, n, sum);
}
} }
extern "C" void run(const double* x, const double* y, int n, double* sum) {
  fused_dropout::some_op::kernel(x, y, n, sum);
}
"""


def test_main_loops_of_a_known_kernel(tmp_path: Path) -> None:
    """The inner of two loops, in a function that the kernel calls."""
    source, library = tmp_path / "loops.cpp", tmp_path / "loops.so"
    source.write_text(LOOPS)
    flags = ("-O1", "-mfma", "-fPIC", "-shared", "-std=c++17")
    count.run(count.compiler(), *flags, str(source), "-o", str(library))
    functions = disassembled(library)
    mix = main_loops(functions, "some_op::kernel<double>", "multiply-add")
    assert mix["multiply-add"] == mix["branch"] == 1
    assert mix["store"] == 1  # the sum may be one of the factors
    assert 7 <= mix.total() <= 8  # two loads of factors, and what counts and compares
    with pytest.raises(AssertionError, match="has a mask load"):
        main_loops(functions, "some_op::kernel<double>", "mask load")
    with pytest.raises(AssertionError, match="no function"):
        main_loops(functions, "some_op::kernel<float>", "multiply-add")
