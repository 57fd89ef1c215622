"""Builds fused_dropout._C, the C++ (and, with a CUDA toolkit, CUDA) kernels.

Environment variables:
  FUSED_DROPOUT_CUDA=0|1  never / always build the CUDA kernels (default: when torch was built for
                          CUDA and a toolkit is found; a GPU need not be present)
  TORCH_CUDA_ARCH_LIST    the CUDA architectures, as for every torch extension
  MAX_JOBS                compiler processes at a time
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.*)"', (ROOT / "fused_dropout" / "_version.py").read_text())[
    1
]
MINIMUM_TORCH = (2, 11)
GENERATED = Path("build") / "generated"
# Compiled for where TORCH_CUDA_ARCH_LIST does not say otherwise.
DEFAULT_CUDA_ARCHITECTURES = "8.0;9.0+PTX"


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


def choose_architectures() -> str:
    """The CUDA architectures, leaving the user's choice alone."""
    chosen = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if chosen:
        say(f"CUDA architectures: {chosen} (TORCH_CUDA_ARCH_LIST)")
    else:
        chosen = DEFAULT_CUDA_ARCHITECTURES
        os.environ["TORCH_CUDA_ARCH_LIST"] = chosen
        say(f"CUDA architectures: {chosen} (default)")
    return chosen


def commit() -> str:
    """The commit being built, marked when the tree has changes; 'unknown' outside a checkout."""
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


def extension():
    """The extension module, with CUDA sources where they can be built."""
    torch = import_torch()
    from torch.utils.cpp_extension import CUDA_HOME, CppExtension, CUDAExtension

    say(f"torch {torch.__version__}, python {sys.version.split()[0]}")
    say(f"MAX_JOBS: {os.environ.get('MAX_JOBS', 'not set, ninja decides')}")
    folders = ["csrc", "csrc/cpu"]
    patterns = ["*.cpp"]
    flags = {"cxx": ["-O3", "-g0", "-fvisibility=hidden", "-fopenmp", "-Wno-psabi"]}
    with_cuda = want_cuda(torch, CUDA_HOME)
    cuda, architectures = "", ""
    if with_cuda:
        folders.append("csrc/cuda")
        patterns.append("*.cu")
        cuda, architectures = torch.version.cuda, choose_architectures()
        flags["nvcc"] = ["-O3", "-lineinfo"]
    write_build_facts(cuda, architectures)
    sources = sorted(
        str(path.relative_to(ROOT))
        for folder in folders
        for pattern in patterns
        for path in (ROOT / folder).glob(pattern)
    )
    kind = CUDAExtension if with_cuda else CppExtension
    return kind(
        "fused_dropout._C",
        sources,
        include_dirs=[str(ROOT / GENERATED)],
        depends=[str(path.relative_to(ROOT)) for path in (ROOT / "csrc").rglob("*.h")],
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
