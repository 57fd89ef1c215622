"""Compiles the CPU kernels of one instruction set into a library without torch.

An emulated library holds the same sources, but none of the instruction set's instructions: they are
compiled for SSE 4.2, with emulated/immintrin.h in the place of the compiler's own header.
Libraries are kept in build/simd_on_any_cpu/.
"""

from __future__ import annotations

import functools
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from support.build_cache import cached_build, fingerprint
from support.paths import ROOT, TESTS

HERE = TESTS / "simd_on_any_cpu"
CSRC = ROOT / "csrc"
FOLDER = ROOT / "build" / "simd_on_any_cpu"
LIBRARY = "libkernels.so"

COMMON_FLAGS = ("-std=c++17", "-fPIC", "-Wno-psabi")
NATIVE_FLAGS = ("-O3", "-DNDEBUG")  # as setup.py compiles them
# Functions of their own halve the compiler's time. SSE 4.2 is in every processor with 64 bits since
# 2011; without it, SIMD Everywhere 0.7.4 has a _mm_testz_si128 that is wrong.
EMULATED_FLAGS = (
    "-O1", "-march=x86-64", "-msse4.2", "-DSIMDE_NO_INLINE", "-DFUSED_DROPOUT_EMULATED",
    f"-I{HERE / 'emulated'}",
)  # fmt: skip
ENUMERATORS = {"avx512": "kAvx512", "avx2": "kAvx2", "plain": "kPlain"}
# What switches an instruction set on, in csrc/cpu/simd/isa_*.cpp.
SWITCH = re.compile(r"#if defined\(__clang__\)\n#pragma clang attribute.*?#endif\n", re.DOTALL)


class CannotBuild(RuntimeError):
    """Says what is missing on this machine."""


@functools.cache
def compiler() -> str:
    """$CXX, else g++ if there is one, else clang++."""
    named = os.environ.get("CXX")
    found = shutil.which(named) if named else shutil.which("g++") or shutil.which("clang++")
    if not found:
        raise CannotBuild(f"{named or 'g++ or clang++'} is needed (apt-get install g++)")
    return found


def run(*command: str) -> str:
    """The command's standard output; its messages in the error if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return done.stdout


@functools.cache
def require_emulation() -> None:
    """Raises CannotBuild where SIMD Everywhere or an x86-64 processor is missing."""
    if platform.machine() != "x86_64":
        raise CannotBuild(
            f"AVX kernels are compiled for x86-64 alone, this is {platform.machine()}"
        )
    source = "#if !__has_include(<simde/x86/avx512.h>)\n#error missing\n#endif\n"
    command = [compiler(), "-E", "-x", "c++", "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True)
    if done.returncode:
        raise CannotBuild(
            "emulating an instruction set needs SIMD Everywhere (apt-get install libsimde-dev)"
        )


def sources() -> list[Path]:
    """What a library is made of."""
    folders = (CSRC / "common", CSRC / "cpu", HERE)
    files = [path for folder in folders for path in folder.rglob("*.h")]
    return [*files, *CSRC.glob("cpu/simd/*.cpp"), HERE / "entries.cpp"]


def write_ops(folder: Path, csrc: Path, files: str) -> None:
    """simd_ops.h, which setup.py writes for the extension, with some files of ops/."""
    ops = sorted(csrc.glob(f"cpu/simd/ops/{files}"))
    (folder / "simd_ops.h").write_text("".join(f'#include "{path}"\n' for path in ops))


def without_switch(source: str) -> str:
    """The source of an instruction set's kernels, which then does not switch it on."""
    stripped, count = SWITCH.subn("", source)
    assert count == 2, "isa_*.cpp switches its instruction set on and off"
    return stripped


def build(
    isa: str,
    emulated: bool,
    folder: Path,
    csrc: Path = CSRC,
    flags: tuple[str, ...] = (),
    ops: str = "*.h",
) -> None:
    """libkernels.so in `folder`, of these sources and with these flags too.

    Without all ops it can be looked at, but not be loaded.
    """
    write_ops(folder, csrc, ops)
    kernels = csrc / "cpu" / "simd" / f"isa_{isa}.cpp"
    if emulated:
        source = without_switch(kernels.read_text())
        kernels = folder / "kernels.cpp"
        kernels.write_text(source)
    folders = [f"-I{path}" for path in (folder, csrc, csrc / "cpu" / "simd")]
    flags = (*(EMULATED_FLAGS if emulated else NATIVE_FLAGS), *flags, *folders)
    compiled = (compiler(), *COMMON_FLAGS, *flags, f"-DENTRIES_ISA={ENUMERATORS[isa]}")
    run(*compiled, "-shared", str(kernels), str(HERE / "entries.cpp"), "-o", str(folder / LIBRARY))


@functools.cache
def built(isa: str, emulated: bool) -> Path:
    """The folder of a library; raises CannotBuild where it cannot be made.

    Made, not run: the compiler knows instruction sets that the processor lacks.
    """
    if emulated:
        require_emulation()
    facts = (COMMON_FLAGS, NATIVE_FLAGS, EMULATED_FLAGS, run(compiler(), "--version"))
    state = fingerprint(facts, [*sources(), Path(__file__)])
    name = f"{isa}-{'emulated' if emulated else 'native'}-{Path(compiler()).name}"
    return cached_build(FOLDER, name, state, functools.partial(build, isa, emulated))
