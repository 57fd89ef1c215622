"""Compiles kernels.cu with nvcc: its PTX, and a library whose launches come to the interpreter.

Both come from one run of nvcc and lie in build/ptx/<hash of sources, flags and compiler>/.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FOLDER = ROOT / "build" / "ptx"
KEPT_BUILDS = 4
SOURCES = ("kernels.cu", "runtime.cpp")

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


def fingerprint() -> str:
    """Changes whenever the kernels have to be compiled again."""
    files = [HERE / name for name in SOURCES]
    for folder in ("common", "cuda"):
        files += (ROOT / "csrc" / folder).glob("*.*h")
    state = hashlib.sha256(run([nvcc(), "--version"]).encode())
    for path in [*sorted(files), Path(__file__)]:
        state.update(path.name.encode() + b"\0" + path.read_bytes())
    return state.hexdigest()[:16]


def compile_into(folder: Path) -> None:
    """Makes `folder`/kernels.ptx and `folder`/kernels.so; the latter holds the same PTX."""
    sources = [str(HERE / name) for name in SOURCES]
    scratch = folder / "scratch"
    scratch.mkdir()
    keep = ["--keep", "--keep-dir", str(scratch)]
    library = ["-o", str(folder / "kernels.so")]
    run([nvcc(), *PTX_FLAGS, *LIBRARY_FLAGS, *keep, *sources, *library])
    (scratch / "kernels.ptx").rename(folder / "kernels.ptx")
    shutil.rmtree(scratch)


def remove_old_builds() -> None:
    """Keeps the newest."""
    builds = sorted(FOLDER.iterdir(), key=lambda path: path.stat().st_mtime)
    for path in builds[:-KEPT_BUILDS]:
        shutil.rmtree(path, ignore_errors=True)


@functools.cache
def compiled_kernels() -> Build:
    """The compiled kernels, from build/ where they are there already."""
    target = FOLDER / fingerprint()
    if not target.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
            folder = Path(scratch) / "kernels"
            folder.mkdir()
            compile_into(folder)
            # In one step, so that nobody finds half a build; another process may have been faster.
            if not target.exists():
                folder.rename(target)
        remove_old_builds()
    return Build(target / "kernels.ptx", target / "kernels.so")
