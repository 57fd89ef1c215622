"""Compiles the worker process that runs kernels, once per variant and state of its sources.

Everything goes to build/cuda_on_cpu/<variant>-<hash of sources, flags and compiler>/. The variant
for GPUs needs nvcc, but no GPU: PYTHONPATH=tests python -m cuda_on_cpu.build compiles it and says
whether it can be run here.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from support.build_cache import cached_build, fingerprint
from support.paths import ROOT, TESTS

HERE = TESTS / "cuda_on_cpu"
FOLDER = ROOT / "build" / "cuda_on_cpu"
ARCHITECTURES_WITHOUT_GPU = ("90",)  # what the worker is compiled for where there is no GPU

# The emulator itself. It is not instrumented, and must not call memcpy and memset where it says
# loops: the sanitizers would take its accesses for the kernel's.
RUNTIME = ("scheduler.cpp", "fiber.cpp", "memory.cpp")
RUNTIME_FLAGS = ("-O2", "-fno-tree-loop-distribute-patterns")

# Kernels read floats as uint4 and the like, which CUDA allows.
COMMON_FLAGS = ("-std=c++17", "-g1", "-Wall", "-Wextra", "-Wno-unknown-pragmas", f"-I{HERE}")
KERNEL_FLAGS = ("-fno-strict-aliasing", "-ffp-contract=off")


@dataclass(frozen=True)
class Variant:
    """Flags that tell one build from another; `kernel` alone for the GPU, where nvcc builds."""

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
    "gpu": Variant(("-std=c++17", "-O2", "-lineinfo", "-diag-suppress=1675")),
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


def cuda_tool(name: str) -> str | None:
    """A program of the CUDA toolkit: on PATH, or where toolkits are installed."""
    homes = [os.environ.get("CUDA_HOME", ""), os.environ.get("CUDA_PATH", ""), "/usr/local/cuda"]
    folders = [Path(home) / "bin" for home in homes if home]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(map(str, folders)))


@functools.cache
def gpu_architectures() -> tuple[str, ...]:
    """The compute capabilities of this machine's GPUs, such as "90"; none where there is no GPU."""
    nvidia_smi = shutil.which("nvidia-smi")
    if not nvidia_smi:
        return ()
    command = [nvidia_smi, "--query-gpu=compute_cap", "--format=csv,noheader"]
    result = subprocess.run(command, capture_output=True, text=True)
    found = re.findall(r"^(\d+)\.(\d+)$", result.stdout, re.MULTILINE)
    return tuple(sorted({major + minor for major, minor in found}))


def compiled_for() -> tuple[str, ...]:
    """What nvcc compiles the worker for: this machine's GPUs, if it has any."""
    return gpu_architectures() or ARCHITECTURES_WITHOUT_GPU


def gpu_obstacle() -> str | None:
    """Why no kernel can be compiled for and run on a GPU here; None if one can."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides all GPUs"
    if not gpu_architectures():
        return "no GPU: nvidia-smi is not there or shows none"
    return None if cuda_tool("nvcc") else "no nvcc, neither on PATH nor in CUDA_HOME"


def sources() -> list[Path]:
    """All files that a worker depends on."""
    files = [path for path in HERE.iterdir() if path.suffix in (".h", ".cpp", ".cu", ".cuh")]
    files += (ROOT / "csrc" / "common").glob("*.h")
    files += (path for path in (ROOT / "csrc" / "cuda").iterdir() if path.suffix in (".h", ".cuh"))
    return sorted(files)


def run(command: list[str]) -> str:
    """The command's standard output."""
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode == 0:
        return result.stdout
    if re.search(r"(cannot find|no such file).*(asan|ubsan|tsan)", result.stderr, re.IGNORECASE):
        raise SanitizerMissing(result.stderr)
    raise BuildError(f"{' '.join(command)}\n{result.stderr}")


def emulator_commands(variant: Variant) -> list[list[str]]:
    """What compiles each source file, slowest first."""
    commands = []
    for source in [*sorted(HERE.glob("*.cu")), HERE / "worker.cpp"]:
        flags = ["-x", "c++", *COMMON_FLAGS, *KERNEL_FLAGS, *variant.kernel]
        commands.append([compiler(), *flags, "-c", str(source)])
    for name in RUNTIME:
        flags = [*COMMON_FLAGS, *RUNTIME_FLAGS, *variant.runtime]
        commands.append([compiler(), *flags, "-c", str(HERE / name)])
    return commands


def gpu_commands(variant: Variant) -> list[list[str]]:
    """The same for a GPU, to compare the emulator with."""
    nvcc = cuda_tool("nvcc")
    assert nvcc
    images = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in compiled_for()]
    files = [*sorted(HERE.glob("*.cu")), HERE / "worker.cpp"]
    return [[nvcc, *variant.kernel, *images, "-x", "cu", "-c", str(file)] for file in files]


def build(name: str, folder: Path) -> None:
    """Compiles and links `folder`/worker."""
    variant = VARIANTS[name]
    commands = gpu_commands(variant) if name == "gpu" else emulator_commands(variant)
    with_output = [[*c, "-o", str(folder / f"{Path(c[-1]).stem}.o")] for c in commands]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(run, with_output))
    objects = [str(path) for path in sorted(folder.glob("*.o"))]
    run([commands[0][0], *variant.link, *objects, "-o", str(folder / "worker")])
    for path in folder.glob("*.o"):
        path.unlink()


@functools.cache
def worker(name: str) -> Path:
    """The program of a variant, which can be run here; built unless it is there already."""
    obstacle = gpu_obstacle() if name == "gpu" else None
    if obstacle:
        raise BuildError(obstacle)
    return built(name)


def built(name: str) -> Path:
    """The program of a variant, built unless it is there already; "gpu" needs nvcc."""
    tool = cuda_tool("nvcc") if name == "gpu" else compiler()
    architectures = compiled_for() if name == "gpu" else ()
    version = run([str(tool), "--version"])
    facts = (VARIANTS[name], architectures, COMMON_FLAGS, KERNEL_FLAGS, version)
    state = fingerprint(facts, [*sources(), Path(__file__)])
    return cached_build(FOLDER, name, state, functools.partial(build, name)) / "worker"


def main() -> int:
    """Compiles the kernels' worker with nvcc; 1, with nvcc's messages, where it refuses."""
    name = "the kernel tests' worker"
    if not cuda_tool("nvcc"):
        print(f"{name}: no nvcc, neither on PATH nor in CUDA_HOME", file=sys.stderr)
        return 1
    start = time.monotonic()
    try:
        program = built("gpu")
    except BuildError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    images = ", ".join(f"sm_{sm}" for sm in compiled_for())
    seconds = time.monotonic() - start
    obstacle = gpu_obstacle()
    run_here = f"not run here, {obstacle}" if obstacle else "can be run here"
    print(f"{name} is {program}")
    print(f"{name}: compiled and linked for {images} in {seconds:.0f} s; {run_here}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
