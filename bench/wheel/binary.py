"""What a compiled extension needs of torch and of the system, as readelf tells."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

# The only library of torch that promises its functions to later releases' binaries.
OF_TORCH = "libtorch_cpu.so"
_LIBRARY_OF_TORCH = re.compile(r"lib(torch|c10|shm)")
_OF_THE_SYSTEM = re.compile(r"(ld-linux.*|lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+))\.so")
_FAMILIES = ("GLIBC", "GLIBCXX", "CXXABI")


@dataclass(frozen=True)
class Needs:
    """What the dynamic linker will look for."""

    libraries: tuple[str, ...]
    versions: dict[str, str]  # by family of symbols, the newest
    search_path: str  # folders that the binary names

    def objections(self) -> list[str]:
        """Why the extension may fail on other releases of torch or on other machines."""
        found = [
            f"the extension needs {library}; of torch only {OF_TORCH} is promised"
            for library in self.libraries
            if _LIBRARY_OF_TORCH.match(library) and library != OF_TORCH
        ]
        if self.search_path:
            found.append(f"the extension looks for libraries in {self.search_path}")
        return found

    def __str__(self) -> str:
        libraries = [name for name in self.libraries if not _OF_THE_SYSTEM.match(name)]
        versions = [f"{family} {version}" for family, version in self.versions.items()]
        return ", ".join([*libraries, *versions])


def needs(binary: Path) -> Needs:
    """Reads a shared library."""
    done = subprocess.run(
        ["readelf", "--wide", "--dynamic", "--version-info", str(binary)],
        env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return parsed(done.stdout)


def parsed(text: str) -> Needs:
    """The same from readelf's words."""
    libraries = re.findall(r"\(NEEDED\).*\[(.+)\]", text)
    search_path = re.search(r"\((?:RPATH|RUNPATH)\).*\[(.+)\]", text)
    versions = {}
    for family in _FAMILIES:
        asked = re.findall(rf"Name: {family}_([\d.]+)\b", text)
        if asked:
            versions[family] = max(asked, key=lambda v: tuple(map(int, v.split("."))))
    return Needs(tuple(libraries), versions, search_path[1] if search_path else "")
