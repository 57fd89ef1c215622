"""Compiles kernels.cu with nvcc: its PTX, and a library whose launches come to the interpreter.

Both come from one run of nvcc and lie in build/ptx/kernels-<hash of sources, flags and compiler>/.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from support.build_cache import cached_build, fingerprint
from support.paths import ROOT, TESTS

HERE = TESTS / "ptx"
FOLDER = ROOT / "build" / "ptx"
COMPILED = ("kernels.cu", "runtime.cpp")

# The PTX that -arch=sm_90 would assemble, without assembling it.
PTX_FLAGS = ("-std=c++17", "-gencode", "arch=compute_90,code=compute_90", "-diag-suppress=1675")
# -Bsymbolic: a CUDA build of torch has brought libcudart into the process, whose functions must not
# stand in for those of runtime.cpp.
LIBRARY_FLAGS = ("-shared", "-cudart=none", "-Xcompiler=-fPIC", "-Xlinker=-Bsymbolic")


class NvccMissing(RuntimeError):
    """There is no nvcc."""


class Build(NamedTuple):
    """What nvcc made."""

    ptx: Path
    library: Path


@functools.cache
def nvcc() -> str:
    """The compiler on PATH or in CUDA_HOME."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = shutil.which("nvcc") or (home and shutil.which("nvcc", path=f"{home}/bin"))
    if not found:
        raise NvccMissing("no nvcc on PATH or in CUDA_HOME, so there is no PTX to run")
    return found


def run(command: list[str]) -> str:
    """The command's standard output."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stdout}{result.stderr}")
    return result.stdout


def sources() -> list[Path]:
    """All files that the kernels depend on."""
    files = [HERE / name for name in COMPILED]
    for folder in ("common", "cuda"):
        files += (ROOT / "csrc" / folder).glob("*.*h")
    return files


def compile_into(folder: Path) -> None:
    """Makes `folder`/kernels.ptx and `folder`/kernels.so; the latter holds the same PTX."""
    files = [str(HERE / name) for name in COMPILED]
    scratch = folder / "scratch"
    scratch.mkdir()
    keep = ["--keep", "--keep-dir", str(scratch)]
    library = ["-o", str(folder / "kernels.so")]
    run([nvcc(), *PTX_FLAGS, *LIBRARY_FLAGS, *keep, *files, *library])
    (scratch / "kernels.ptx").rename(folder / "kernels.ptx")
    shutil.rmtree(scratch)


@functools.cache
def compiled_kernels() -> Build:
    """The compiled kernels, from build/ where they are there already."""
    facts = (PTX_FLAGS, LIBRARY_FLAGS, run([nvcc(), "--version"]))
    state = fingerprint(facts, [*sources(), Path(__file__)])
    folder = cached_build(FOLDER, "kernels", state, compile_into)
    return Build(folder / "kernels.ptx", folder / "kernels.so")
