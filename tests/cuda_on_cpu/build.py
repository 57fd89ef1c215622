"""Compiles the worker process that runs kernels, once per variant and state of its sources.

Everything goes to build/cuda_on_cpu/<variant>-<hash of sources, flags and compiler>/.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
FOLDER = ROOT / "build" / "cuda_on_cpu"
KEPT_BUILDS = 4  # of each variant

# The emulator itself. It is not instrumented, and must not call memcpy and memset where it says
# loops: the sanitizers would take its accesses for the kernel's.
RUNTIME = ("scheduler.cpp", "fiber.cpp", "memory.cpp")
RUNTIME_FLAGS = ("-O2", "-fno-tree-loop-distribute-patterns")

# Kernels read floats as uint4 and the like, which CUDA allows.
COMMON_FLAGS = ("-std=c++17", "-g1", "-Wall", "-Wextra", "-Wno-unknown-pragmas", f"-I{HERE}")
KERNEL_FLAGS = ("-fno-strict-aliasing", "-ffp-contract=off")


@dataclass(frozen=True)
class Variant:
    """Flags that tell one build from another."""

    kernel: tuple[str, ...]  # for the kernels
    runtime: tuple[str, ...] = ()  # for the emulator
    link: tuple[str, ...] = ()


ASAN = "-fsanitize=address,undefined"
TSAN = "-fsanitize=thread"
VARIANTS = {
    "plain": Variant(("-O2",)),
    "asan": Variant(
        ("-O1", ASAN, "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"),
        ("-DEMULATOR_ASAN=1",),
        (ASAN,),
    ),
    "tsan": Variant(("-O1", TSAN), ("-DEMULATOR_TSAN=1",), (TSAN,)),
    "gpu": Variant(("-O2", "-std=c++17", "-arch=native", "-diag-suppress=1675")),  # for nvcc
}


class BuildError(RuntimeError):
    """The compiler's messages."""


class SanitizerMissing(RuntimeError):
    """The compiler is there, but not its sanitizer's library."""


@functools.cache
def compiler() -> str:
    """g++ if there is one: its ThreadSanitizer finds races between blocks that clang's misses."""
    found = shutil.which("g++") or shutil.which("clang++")
    if not found:
        raise BuildError("running CUDA kernels on the CPU needs g++ or clang++ (apt install g++)")
    return found


def sources() -> list[Path]:
    """All files that a worker depends on."""
    files = [path for path in HERE.iterdir() if path.suffix in (".h", ".cpp", ".cu", ".cuh")]
    files += (ROOT / "csrc" / "common").glob("*.h")
    files += (path for path in (ROOT / "csrc" / "cuda").iterdir() if path.suffix in (".h", ".cuh"))
    return sorted([*files, ROOT / "csrc" / "cpu" / "scalar_types.h"])


def run(command: list[str]) -> str:
    """The command's standard output."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode == 0:
        return result.stdout
    if re.search(r"(cannot find|no such file).*(asan|ubsan|tsan)", result.stderr, re.IGNORECASE):
        raise SanitizerMissing(result.stderr)
    raise BuildError(f"{' '.join(command)}\n{result.stderr}")


def compile_commands(variant: Variant, folder: Path) -> list[list[str]]:
    """One command per object file, slowest first."""
    commands = []
    for source in [*sorted(HERE.glob("*.cu")), HERE / "worker.cpp"]:
        flags = ["-x", "c++", *COMMON_FLAGS, *KERNEL_FLAGS, *variant.kernel]
        commands.append([compiler(), *flags, "-c", str(source)])
    for name in RUNTIME:
        flags = [*COMMON_FLAGS, *RUNTIME_FLAGS, *variant.runtime]
        commands.append([compiler(), *flags, "-c", str(HERE / name)])
    return [[*command, "-o", str(folder / f"{Path(command[-1]).stem}.o")] for command in commands]


def build_for_gpu(variant: Variant, folder: Path) -> None:
    """The same worker for a GPU, to compare the emulator with."""
    files = [*map(str, sorted(HERE.glob("*.cu"))), str(HERE / "worker.cpp")]
    run(["nvcc", *variant.kernel, "-x", "cu", *files, "-o", str(folder / "worker")])


def build(variant: Variant, folder: Path) -> None:
    """Compiles and links `folder`/worker."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, compile_commands(variant, folder)))
    objects = [str(path) for path in sorted(folder.glob("*.o"))]
    run([compiler(), *variant.link, *objects, "-o", str(folder / "worker")])
    for path in folder.glob("*.o"):
        path.unlink()


def fingerprint(name: str) -> str:
    """Changes whenever the worker has to be built again."""
    state = hashlib.sha256(repr((VARIANTS[name], COMMON_FLAGS, KERNEL_FLAGS)).encode())
    state.update(run([compiler(), "--version"]).encode())
    for path in [*sources(), Path(__file__)]:
        state.update(path.name.encode() + b"\0" + path.read_bytes())
    return state.hexdigest()[:16]


def remove_old_builds(name: str) -> None:
    """Keeps the newest builds of a variant."""
    builds = sorted(FOLDER.glob(f"{name}-*"), key=lambda path: path.stat().st_mtime)
    for path in builds[:-KEPT_BUILDS]:
        shutil.rmtree(path, ignore_errors=True)


@functools.cache
def worker(name: str) -> Path:
    """The program of a variant, built unless it is there already."""
    target = FOLDER / f"{name}-{fingerprint(name)}"
    if not (target / "worker").exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
            folder = Path(scratch) / "worker"
            folder.mkdir()
            (build_for_gpu if name == "gpu" else build)(VARIANTS[name], folder)
            # In one step, so that nobody finds half a build; another process may have been faster.
            if not target.exists():
                folder.rename(target)
        remove_old_builds(name)
    return target / "worker"
