"""C++ of the project, compiled by itself."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path


def compiler() -> str:
    found = shutil.which("g++") or shutil.which("clang++")
    assert found, "the tests need the compiler that built the extension"
    return found


def shared_library(source: str, folder: Path, *arguments: str) -> ctypes.CDLL:
    """`source`, compiled in `folder` with these flags and further files."""
    (folder / "library.cpp").write_text(source)
    command = [compiler(), "-std=c++17", "-Wno-psabi", "-fPIC", "-shared", "library.cpp"]
    subprocess.run([*command, *arguments, "-o", "library.so"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "library.so"))
