"""Builds fused_dropout._C, the C++ (and, with a CUDA toolkit, CUDA) kernels.

Environment variables:
  FUSED_DROPOUT_CUDA=0|1  never / always build the CUDA kernels (default: when torch was built for
                          CUDA and a toolkit is found; a GPU need not be present)
  FUSED_DROPOUT_COMMIT    the commit that the build reports (default: git's answer)
  TORCH_CUDA_ARCH_LIST    the CUDA architectures, as for every torch extension
  MAX_JOBS                compiler processes at a time
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Collection, Sequence
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.*)"', (ROOT / "fused_dropout" / "_version.py").read_text())[
    1
]
MINIMUM_TORCH = (2, 11)
GENERATED = Path("build") / "generated"
# Compiled for where TORCH_CUDA_ARCH_LIST does not say otherwise. GPUs newer than the last one
# compile its PTX when they first load it.
DEFAULT_CUDA_ARCHITECTURES = "8.0;9.0+PTX"
# Headers of CUDA libraries that torch's own headers include, and that a toolkit may lack.
LIBRARY_HEADERS = ("cublas_v2.h", "cublasLt.h", "cusolverDn.h", "cusparse.h")
CXX_FLAGS = ("-O3", "-g0", "-fvisibility=hidden", "-fopenmp", "-Wno-psabi")
# 1675: the pragmas of GCC in torch's headers.
NVCC_FLAGS = ("-O3", "-lineinfo", "--diag-suppress=1675")


def say(message: str) -> None:
    """Prints one build decision; pip shows it with -v."""
    print(f"fused_dropout: {message}", flush=True)


def import_torch():
    """torch, or an exit that says how to get a fitting one."""
    try:
        import torch
    except ImportError:
        sys.exit(
            "fused_dropout is built against the torch that it will run with, and torch is not "
            "installed here.\nInstall it (pip install 'torch>=2.11'), then run: "
            "pip install --no-build-isolation ."
        )
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if release < MINIMUM_TORCH:
        sys.exit(f"fused_dropout needs torch 2.11 or newer, found {torch.__version__}.")
    return torch


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
    missing = []
    if torch.version.cuda is None:
        missing.append(f"torch {torch.__version__} is a CPU build")
    elif cuda_home is None:
        missing.append("no CUDA toolkit found (put nvcc on PATH or set CUDA_HOME)")
    if not list((ROOT / "csrc" / "cuda").glob("*.cu")):
        missing.append("this version has CPU kernels only")
    if missing and forced == "1":
        sys.exit("FUSED_DROPOUT_CUDA=1, but " + " and ".join(missing) + ".")
    if missing:
        say("CUDA kernels: no (" + "; ".join(missing) + ")")
        return False
    say(f"CUDA kernels: yes (torch for CUDA {torch.version.cuda}, toolkit at {cuda_home})")
    return True


def find_toolkit() -> None:
    """Sets CUDA_HOME where the nvcc on PATH is a wrapper that lies outside its toolkit."""
    nvcc = shutil.which("nvcc")
    if nvcc is None or os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return
    if (Path(nvcc).parents[1] / "include" / "cuda_runtime.h").exists():
        return
    command = [nvcc, "--dryrun", "-x", "cu", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    top = re.search(r"^#\$ TOP=(.+)$", done.stderr, re.MULTILINE)
    if top:
        os.environ["CUDA_HOME"] = str(Path(top[1]).resolve())
        say(f"CUDA toolkit: {os.environ['CUDA_HOME']} (asked {nvcc})")


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


def package_includes(cuda_version: str) -> list[Path]:
    """The include folders of the CUDA packages that pip installed beside torch."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(place) for place in (spec and spec.submodule_search_locations) or ()]
    major = cuda_version.split(".")[0]
    together = [root / f"cu{major}" / "include" for root in roots]  # since CUDA 13
    apart = [folder for root in roots for folder in sorted(root.glob("*/include"))]
    return [folder for folder in together if folder.is_dir()] or apart


def library_includes(cuda_home: str, packages: Sequence[Path]) -> list[str]:
    """The folders of `packages` that hold the library headers which the toolkit lacks."""
    toolkit = Path(cuda_home) / "include"
    missing = [header for header in LIBRARY_HEADERS if not (toolkit / header).exists()]
    found = {}
    for header in missing:
        folder = next((str(folder) for folder in packages if (folder / header).exists()), None)
        found[header] = folder
    folders = list(dict.fromkeys(folder for folder in found.values() if folder))
    absent = [header for header, folder in found.items() if folder is None]
    if not missing:
        say("CUDA library headers: the toolkit's")
    for folder in folders:
        say(f"CUDA library headers: {folder} (the toolkit lacks them)")
    if absent:
        say(f"CUDA library headers: {', '.join(absent)} not found; install the full toolkit")
    return folders


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


def write_build_facts(cuda: str, architectures: str) -> None:
    """The header that registration.cpp reports from, rewritten only when it changes."""
    facts = {
        "FUSED_DROPOUT_VERSION": VERSION,
        "FUSED_DROPOUT_COMMIT": commit(),
        "FUSED_DROPOUT_CUDA_VERSION": cuda,
        "FUSED_DROPOUT_CUDA_ARCHITECTURES": architectures,
    }
    text = "// Written by setup.py.\n#pragma once\n"
    text += "".join(f'#define {name} "{value}"\n' for name, value in facts.items())
    header = ROOT / GENERATED / "build_facts.h"
    header.parent.mkdir(parents=True, exist_ok=True)
    if not header.exists() or header.read_text() != text:
        header.write_text(text)


def files(*patterns: str) -> list[str]:
    """The files that match, relative to the root."""
    return sorted(str(path.relative_to(ROOT)) for p in patterns for path in ROOT.glob(p))


def extension():
    """The extension module, with CUDA sources where they can be built."""
    torch = import_torch()
    require_python_headers()
    if torch.version.cuda is not None:
        find_toolkit()
    from torch.utils.cpp_extension import CUDA_HOME, CppExtension, CUDAExtension

    say(f"torch {torch.__version__}, python {sys.version.split()[0]}")
    say(f"MAX_JOBS: {os.environ.get('MAX_JOBS', 'not set, ninja decides')}")
    folders = ["csrc", "csrc/cpu"]
    patterns = ["*.cpp"]
    system: list[str] = []
    with_cuda = want_cuda(torch, CUDA_HOME)
    cuda, architectures = "", ""
    if with_cuda:
        folders.append("csrc/cuda")
        patterns.append("*.cu")
        cuda = torch.version.cuda
        architectures = choose_architectures(known_architectures(CUDA_HOME))
        # Searched after the toolkit's own folder, whose other headers must fit its nvcc.
        for folder in library_includes(CUDA_HOME, package_includes(cuda)):
            system += ["-isystem", folder]
    flags = {"cxx": [*CXX_FLAGS, *system], "nvcc": [*NVCC_FLAGS, *system]}
    write_build_facts(cuda, architectures)
    sources = files(*(f"{folder}/{pattern}" for folder in folders for pattern in patterns))
    kind = CUDAExtension if with_cuda else CppExtension
    return kind(
        "fused_dropout._C",
        sources,
        include_dirs=[str(ROOT / GENERATED)],
        depends=files("csrc/**/*.h", "csrc/**/*.cuh"),
        extra_compile_args=flags,
        extra_link_args=["-fopenmp"],
    )


def build_command():
    """torch's builder, with ninja where it is installed."""
    from torch.utils.cpp_extension import BuildExtension

    return BuildExtension.with_options(use_ninja=True)


if __name__ == "__main__":
    setup(
        version=VERSION,
        ext_modules=[extension()],
        cmdclass={"build_ext": build_command()},
    )
