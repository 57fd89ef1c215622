"""Runs programs, and finds those of the CUDA toolkit."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path


class ReportError(Exception):
    """Why there is no report, in one line."""


def run(command: Sequence[str | Path], text: str | None = None, cwd: Path | None = None) -> str:
    done = subprocess.run(command, input=text, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        errors = [line for line in lines if "error" in line]
        raise ReportError(f"{Path(command[0]).name} failed: {(errors or lines[-1:])[0]}")
    return done.stdout


def find_tool(name: str) -> str:
    """A program of the CUDA toolkit: on PATH, in CUDA_HOME, or in the triton package."""
    folders = [os.environ.get("PATH", "")]
    if "CUDA_HOME" in os.environ:
        folders.append(str(Path(os.environ["CUDA_HOME"]) / "bin"))
    triton = importlib.util.find_spec("triton")
    for place in (triton and triton.submodule_search_locations) or ():
        folders.append(str(Path(place) / "backends" / "nvidia" / "bin"))
    found = shutil.which(name, path=os.pathsep.join(folders))
    if found is None:
        raise ReportError(f"{name} not found; put the CUDA toolkit on PATH or pip install triton")
    return found
