"""Builds fused_dropout._C, the C++ (and, with a CUDA toolkit, CUDA) kernels.

Environment variables:
  FUSED_DROPOUT_CUDA=0|1  never / always build the CUDA kernels (default: when torch was built for
                          CUDA and a toolkit is found). A toolkit is all that they need: no GPU, and
                          no CUDA build of torch
  FUSED_DROPOUT_COMMIT    the commit that the build reports (default: git's answer)
  TORCH_CUDA_ARCH_LIST    the CUDA architectures, as for every torch extension
  MAX_JOBS                compiler processes at a time
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Collection, Sequence
from pathlib import Path

import setuptools

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.*)"', (ROOT / "fused_dropout" / "_version.py").read_text())[
    1
]
MINIMUM_TORCH = (2, 11)
GENERATED = Path("build") / "generated"
EXPORTS = Path("csrc") / "exports.map"
# Compiled for where TORCH_CUDA_ARCH_LIST does not say otherwise. GPUs newer than the last one
# compile its PTX when they first load it.
DEFAULT_CUDA_ARCHITECTURES = "8.0;9.0+PTX"
# The oldest torch that the binary runs on: the bindings call no function that is newer. The same
# release, as torch's headers write it.
TARGET = f"0x{MINIMUM_TORCH[0]:02x}{MINIMUM_TORCH[1]:02x}000000000000"
CXX_FLAGS = ("-O3", "-g0", "-fvisibility=hidden", "-Wno-psabi", f"-DTORCH_TARGET_VERSION={TARGET}")
# 1675: the pragmas of GCC in torch's headers.
NVCC_FLAGS = (
    "-O3", "-lineinfo", "--diag-suppress=1675", f"-DTORCH_TARGET_VERSION={TARGET}",
)  # fmt: skip


def say(message: str) -> None:
    """Prints one build decision; pip shows it with -v."""
    print(f"fused_dropout: {message}", flush=True)


def import_torch():
    """torch, or an exit that says how to get a fitting one."""
    try:
        import torch
    except ImportError:
        sys.exit(
            "fused_dropout is compiled with torch's headers, and torch is not installed here.\n"
            "Install it (pip install 'torch>=2.11'), then run: pip install --no-build-isolation ."
        )
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if release < MINIMUM_TORCH:
        sys.exit(f"fused_dropout needs torch 2.11 or newer, found {torch.__version__}.")
    return torch


def require_setuptools() -> None:
    """Exits with the remedy where pyproject.toml would be refused: it names its licence by SPDX."""
    oldest = 77
    if int(setuptools.__version__.split(".")[0]) < oldest:
        sys.exit(
            f"fused_dropout is built by setuptools {oldest} or newer, found "
            f"{setuptools.__version__}: pip install --upgrade setuptools"
        )


def require_python_headers() -> None:
    """Exits with the remedy where Python's C headers are missing."""
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        sys.exit(
            "fused_dropout compiles an extension and needs Python's C headers (Python.h); on "
            "Debian and Ubuntu: apt install python3-dev"
        )


def want_cuda(torch, cuda_home: str | None) -> bool:
    """Whether to build the CUDA kernels: the toolkit decides, never a visible GPU."""
    forced = os.environ.get("FUSED_DROPOUT_CUDA", "")
    if forced not in ("", "0", "1"):
        sys.exit(f"FUSED_DROPOUT_CUDA must be 0 or 1, got {forced!r}.")
    if forced == "0":
        say("CUDA kernels: no (FUSED_DROPOUT_CUDA=0)")
        return False
    no_toolkit = "no CUDA toolkit found (put nvcc on PATH or set CUDA_HOME)"
    if forced == "1" and cuda_home is None:
        sys.exit(f"FUSED_DROPOUT_CUDA=1, but {no_toolkit}.")
    if forced == "" and torch.version.cuda is None:
        say(f"CUDA kernels: no (torch {torch.__version__} is a CPU build)")
        return False
    if cuda_home is None:
        say(f"CUDA kernels: no ({no_toolkit})")
        return False
    say(f"CUDA kernels: yes (toolkit at {cuda_home})")
    return True


def find_toolkit() -> str | None:
    """The CUDA toolkit's folder: the one that is named, or that of the nvcc on PATH."""
    named = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc")
    if named or nvcc is None:
        return named
    home = Path(nvcc).parents[1]
    if not (home / "include" / "cuda_runtime.h").exists():  # nvcc may be a wrapper outside
        command = [nvcc, "--dryrun", "-x", "cu", os.devnull]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        top = re.search(r"^#\$ TOP=(.+)$", done.stderr, re.MULTILINE)
        home = Path(top[1]).resolve() if top else home
    say(f"CUDA toolkit: {home} (nvcc on PATH)")
    return str(home)


def known_architectures(cuda_home: str) -> list[str]:
    """What nvcc can compile for, as TORCH_CUDA_ARCH_LIST writes it; empty where it does not say."""
    command = [str(Path(cuda_home) / "bin" / "nvcc"), "--list-gpu-arch"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return []
    return [f"{major}.{minor}" for major, minor in re.findall(r"compute_(\d+)(\d)\b", done.stdout)]


def choose_architectures(known: Collection[str] = ()) -> str:
    """The CUDA architectures: the user's choice as it is, or the defaults that nvcc knows."""
    chosen = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if chosen:
        say(f"CUDA architectures: {chosen} (TORCH_CUDA_ARCH_LIST)")
        return chosen
    wanted = DEFAULT_CUDA_ARCHITECTURES.removesuffix("+PTX").split(";")
    fitting = [architecture for architecture in wanted if architecture in known or not known]
    if not fitting:
        sys.exit(
            f"nvcc compiles for none of {', '.join(wanted)}, only for {', '.join(known)}. "
            "Set TORCH_CUDA_ARCH_LIST to what your GPU has."
        )
    chosen = ";".join(fitting) + "+PTX"
    os.environ["TORCH_CUDA_ARCH_LIST"] = chosen
    say(f"CUDA architectures: {chosen} (default)")
    return chosen


def toolkit_version(cuda_home: str) -> str:
    """The CUDA release that nvcc belongs to, as torch.version.cuda writes it."""
    command = [str(Path(cuda_home) / "bin" / "nvcc"), "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return re.search(r"release (\d+\.\d+)", done.stdout)[1]


def version_label(cuda: str) -> str:
    """The version, which tells a build with CUDA kernels from one without: 0.1.0+cu130."""
    return f"{VERSION}+cu{cuda.replace('.', '')}" if cuda else VERSION


def commit() -> str:
    """The commit being built, marked when the tree has changes; 'unknown' outside a checkout."""
    if os.environ.get("FUSED_DROPOUT_COMMIT"):
        return os.environ["FUSED_DROPOUT_COMMIT"]
    if not (ROOT / ".git").exists():  # else git would answer for a repository around us
        return "unknown"
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def write_generated(name: str, lines: Sequence[str]) -> None:
    """A header beside the objects, rewritten only when it changes."""
    text = "// Written by setup.py.\n#pragma once\n" + "".join(f"{line}\n" for line in lines)
    header = ROOT / GENERATED / name
    header.parent.mkdir(parents=True, exist_ok=True)
    if not header.exists() or header.read_text() != text:
        header.write_text(text)


def write_build_facts(torch_version: str, cuda: str, architectures: str) -> None:
    """The header that module.cpp reports from."""
    facts = {
        "VERSION": VERSION,
        "COMMIT": commit(),
        "TORCH_VERSION": torch_version,
        "OLDEST_TORCH": ".".join(map(str, MINIMUM_TORCH)),
        "CUDA_VERSION": cuda,
        "CUDA_ARCHITECTURES": architectures,
    }
    defines = [f'#define FUSED_DROPOUT_{name} "{value}"' for name, value in facts.items()]
    write_generated("build_facts.h", defines)


def write_simd_ops() -> None:
    """The header with which simd/isa_*.cpp include the CPU kernels of every op."""
    kernels = files("csrc/cpu/simd/ops/*.h")
    write_generated("simd_ops.h", [f'#include "{path.removeprefix("csrc/")}"' for path in kernels])


def files(*patterns: str) -> list[str]:
    """The files that match, relative to the root."""
    return sorted(str(path.relative_to(ROOT)) for p in patterns for path in ROOT.glob(p))


def extension():
    """The extension module, with CUDA sources where they can be built, and CUDA's release or ""."""
    torch = import_torch()
    require_python_headers()
    from torch.utils import cpp_extension

    cuda_home = find_toolkit() or cpp_extension.CUDA_HOME
    cpp_extension.CUDA_HOME = cuda_home  # a CPU build of torch does not look for one
    say(f"torch {torch.__version__}, python {sys.version.split()[0]}")
    say(f"MAX_JOBS: {os.environ.get('MAX_JOBS', 'not set, ninja decides')}")
    patterns = ["csrc/*.cpp", "csrc/cpu/*.cpp", "csrc/cpu/simd/*.cpp"]
    # torch promises the functions of its stable ABI, and libtorch_cpu has all that are called here.
    libraries = ["torch_cpu"]
    cuda, architectures = "", ""
    with_cuda = want_cuda(torch, cuda_home)
    if with_cuda:
        patterns.append("csrc/cuda/*.cu")
        cuda = toolkit_version(cuda_home)
        architectures = choose_architectures(known_architectures(cuda_home))
        # So that the binary loads, and runs on the CPU, where no CUDA library is.
        libraries += ["cudart_static", "rt", "dl", "pthread"]
    write_build_facts(torch.__version__, cuda, architectures)
    write_simd_ops()
    # Error messages name files: not by the folders of the machine that compiled them.
    folders = [str(ROOT), *cpp_extension.include_paths()]
    maps = [f"-fmacro-prefix-map={folder}/=" for folder in folders]
    kind = cpp_extension.CUDAExtension if with_cuda else cpp_extension.CppExtension
    module = kind(
        "fused_dropout._C",
        files(*patterns),
        include_dirs=[str(ROOT / GENERATED), str(ROOT / "csrc")],
        depends=files("csrc/**/*.h", "csrc/**/*.cuh", str(EXPORTS)),
        extra_compile_args={
            "cxx": [*CXX_FLAGS, *maps],
            "nvcc": [*NVCC_FLAGS, *(f"-Xcompiler={flag}" for flag in maps)],
        },
        extra_link_args=[f"-Wl,--version-script={ROOT / EXPORTS}"],
    )
    module.libraries = libraries
    return module, cuda


def build_command():
    """torch's builder, with ninja where it is installed."""
    from torch.utils.cpp_extension import BuildExtension

    return BuildExtension.with_options(use_ninja=True)


if __name__ == "__main__":
    require_setuptools()
    module, cuda = extension()
    setuptools.setup(
        version=version_label(cuda),
        ext_modules=[module],
        cmdclass={"build_ext": build_command()},
    )
