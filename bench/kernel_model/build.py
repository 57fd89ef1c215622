"""Compiles launches/: machine code for sm_90, and a library whose launches come to the model.

Both come from one run of nvcc for each file, and are kept in build/kernel_model/ until the sources
change.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from .tools import find_tool, run

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BUILDS = ROOT / "build" / "kernel_model"
KEPT = 6  # builds of each file
FLAGS = (
    *("-std=c++17", "-O3", "-gencode", "arch=compute_90,code=sm_90", "-diag-suppress=1675"),
    *("-shared", "-cudart=none", "-Xcompiler=-fPIC", "-Xlinker=-Bsymbolic"),
)


class Build(NamedTuple):
    """What nvcc and the disassembler made of a file in launches/."""

    cubin: Path
    sass: Path
    library: Path


def fingerprint(facts: object, files: Iterable[Path]) -> str:
    """Changes with the files, and with whatever else the build depends on."""
    state = hashlib.sha256(repr(facts).encode())
    for path in sorted(files):
        state.update(path.name.encode() + b"\0" + path.read_bytes())
    return state.hexdigest()[:16]


def built(name: str) -> Build:
    """launches/<name>.cu compiled."""
    sources = [HERE / "runtime.cpp", *(HERE / "launches").glob("*.h"), _source(name)]
    for folder in ("common", "cuda"):
        sources += (ROOT / "csrc" / folder).glob("*.*h")
    nvcc = find_tool("nvcc")
    state = fingerprint((FLAGS, run([nvcc, "--version"])), sources)
    target = BUILDS / f"{name}-{state}"
    if not target.exists():
        _compile(nvcc, name, target)
    return Build(target / f"{name}.cubin", target / f"{name}.sass", target / f"{name}.so")


def _source(name: str) -> Path:
    return HERE / "launches" / f"{name}.cu"


def _compile(nvcc: str, name: str, target: Path) -> None:
    BUILDS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILDS) as scratch:
        filled, steps = Path(scratch) / "filled", Path(scratch) / "steps"
        filled.mkdir()
        steps.mkdir()
        files = [str(_source(name)), str(HERE / "runtime.cpp")]
        keep = ["--keep", "--keep-dir", str(steps)]
        run([nvcc, *FLAGS, *keep, *files, "-o", str(filled / f"{name}.so")])
        cubin = filled / f"{name}.cubin"
        shutil.copy(steps / f"{name}.cubin", cubin)
        (filled / f"{name}.sass").write_text(run([find_tool("cuobjdump"), "-sass", str(cubin)]))
        filled.rename(target)
    for old in sorted(BUILDS.glob(f"{name}-*"), key=lambda p: p.stat().st_mtime)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
