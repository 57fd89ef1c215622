"""Instructions that the CPU kernels take, and their comparison with baselines.json.

AVX2 and plain kernels are run under callgrind, which counts: instructions per unit of work.
valgrind does not know AVX-512, so those kernels are not run; counted are the instructions of their
main loops for each one that does the work (loops.py).
"""

from __future__ import annotations

import functools
import json
import platform
import re
import shutil
import tempfile
from pathlib import Path

from simd_on_any_cpu.build import HERE as ENTRIES
from simd_on_any_cpu.build import LIBRARY, CannotBuild, built, compiler, run

from instruction_counts.loops import KIND_NAMES, disassembled, main_loops

HERE = Path(__file__).parent
BASELINES = HERE / "baselines.json"
ISAS = ("avx2", "plain", "avx512")
AVX2 = {"avx2", "fma", "f16c", "bmi1", "bmi2"}  # as /proc/cpuinfo names what the kernels need
TOLERANCE = 0.03
TOLERANCE_OF_OTHER_RELEASES = 0.25  # of the compiler
REWRITE = "`make instruction-counts` rewrites the baselines"

Counts = dict[str, float]  # instructions per unit of work, by workload
Mixes = dict[str, dict[str, int]]  # instructions of a kernel's main loops, by kind

# Where AVX-512 kernels have their main loops, and the instructions that do their work. The loops
# are in the function or in what it calls by name: a call by a pointer is not followed.
MAIN_LOOPS = {
    "mask bits": ("draw_groups", "32-bit product"),
    "dropconnect forward float32": ("dropconnect::forward<float>", "multiply-add"),
    "dropconnect forward float64": ("dropconnect::forward<double>", "multiply-add"),
    "dropconnect backward float32": (
        "dropconnect::gradient_block<true, true, true, float>",
        "multiply-add",
    ),
    "dropconnect backward float64": (
        "dropconnect::gradient_block<true, true, true, double>",
        "multiply-add",
    ),
    "dropout float32": ("dropout::draw_and_apply<float>", "mask load"),
    "bias_act_dropout_add float32": ("bias_act_dropout_add::forward<float>", "multiply-add"),
}


def compiler_and_release() -> tuple[str, int]:
    """("gcc", 12) or ("clang", 14)."""
    command = [compiler(), "-dM", "-E", "-x", "c++", "/dev/null"]
    macros = dict(re.findall(r"^#define (\S+) (.*)$", run(*command), re.MULTILINE))
    if "__clang_major__" in macros:
        return "clang", int(macros["__clang_major__"])
    return "gcc", int(macros["__GNUC__"])


def obstacle(isa: str) -> str | None:
    """Why this instruction set's instructions cannot be counted here; None if they can."""
    if isa != "plain" and platform.machine() != "x86_64":
        return f"{isa} is of x86-64, this is {platform.machine()}"
    if isa == "avx512":
        return None  # compiled, not run
    if not shutil.which("valgrind"):
        return "counting instructions needs valgrind (apt-get install valgrind)"
    missing = AVX2 - set(Path("/proc/cpuinfo").read_text().split())
    return "this processor cannot run avx2" if isa == "avx2" and missing else None


def callgrind_counts(library: Path) -> Counts:
    """Of all workloads of workloads.cpp with this library."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = str(folder / "workloads")
        flags = ("-std=c++17", "-O1", f"-I{ENTRIES}", str(HERE / "workloads.cpp"))
        run(compiler(), *flags, str(library), f"-Wl,-rpath,{library.parent}", "-o", program)
        counting = ("--toggle-collect=measured", "--dump-after=measured")
        out = f"--callgrind-out-file={folder / 'counts'}"
        listed = run("valgrind", "--tool=callgrind", *counting, out, program).splitlines()
        counts = {}
        for number, line in enumerate(listed, start=1):
            units, workload = line.split(maxsplit=1)
            dump = (folder / f"counts.{number}").read_text()
            total = re.search(r"^totals: (\d+)$", dump, re.MULTILINE)
            assert total, f"callgrind's {number}th dump has no total"
            counts[workload] = int(total[1]) / int(units)
        return counts


def loop_mixes(library: Path, op: str = "") -> Mixes:
    """The main loops of AVX-512 kernels, whose names begin with `op`."""
    functions = disassembled(library)
    return {
        name: dict(sorted(main_loops(functions, signature, work).items()))
        for name, (signature, work) in MAIN_LOOPS.items()
        if name.startswith(op)
    }


def per_work(mixes: Mixes) -> Counts:
    """Instructions for each one that does the work: of all kinds, and "name: kind" of each."""
    counts = {}
    for name, mix in mixes.items():
        done = mix[MAIN_LOOPS[name][1]]
        counts[name] = sum(mix.values()) / done
        counts |= {f"{name}: {kind}": mix.get(kind, 0) / done for kind in KIND_NAMES}
    return counts


@functools.cache
def measured(isa: str) -> Counts:
    """Of the sources as they are; raises CannotBuild where this machine cannot count."""
    if found := obstacle(isa):
        raise CannotBuild(found)
    library = built(isa, emulated=False) / LIBRARY
    return per_work(loop_mixes(library)) if isa == "avx512" else callgrind_counts(library)


def baseline(isa: str) -> tuple[Counts, bool]:
    """What is committed, and whether it is of this very release of the compiler.

    Else it is of the release next to it. CannotBuild is raised where there is none.
    """
    family, release = compiler_and_release()
    committed = json.loads(BASELINES.read_text())
    known = {
        int(name.split()[1]): counts[isa]
        for name, counts in committed.items()
        if name.split()[0] == family and isa in counts
    }
    if not known:
        raise CannotBuild(f"no baselines for {family} {release} and {isa}: {REWRITE}")
    nearest = min(known, key=lambda other: abs(other - release))
    counts = known[nearest]
    return per_work(counts) if isa == "avx512" else counts, nearest == release


def differences(counts: Counts, expected: Counts, tolerance: float) -> list[str]:
    """A line for every workload that takes more or fewer instructions than expected.

    Of a kind of instructions, so many more or fewer are tolerated as of all kinds.
    """
    lines = []
    for name in sorted(counts.keys() | expected.keys()):
        now, before = counts.get(name), expected.get(name)
        if now is None or before is None:
            lines.append(f"{name}: {'not measured' if now is None else 'has no baseline'}")
        else:
            change = (now - before) / expected[name.partition(": ")[0]]
            if abs(change) > tolerance:
                lines.append(f"{name}: {before:.4g} -> {now:.4g} ({change:+.1%})")
    return lines


def rewrite() -> list[str]:
    """Writes baselines.json for this compiler, and says what became of each instruction set."""
    committed = json.loads(BASELINES.read_text()) if BASELINES.exists() else {}
    own = committed.setdefault(" ".join(map(str, compiler_and_release())), {})
    said = []
    for isa in ISAS:
        try:
            counts = measured(isa)
        except CannotBuild as reason:
            said.append(f"{isa}: left as it was, {reason}")
            continue
        if isa == "avx512":
            own[isa] = loop_mixes(built(isa, emulated=False) / LIBRARY)
        else:
            own[isa] = {name: float(f"{value:.4g}") for name, value in counts.items()}
        said.append(f"{isa}: {len(own[isa])} baselines")
    BASELINES.write_text(json.dumps(committed, indent=2) + "\n")
    return said
