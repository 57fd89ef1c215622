"""The programs of examples/, run as a user runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.paths import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
SECONDS = 300


def run_example(
    name: str, *arguments: str, launcher: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run ``examples/<name>.py``; ``launcher`` are options of Python, ``("-m", "...")``.

    The source tree comes first on the path, and one thread is used, as other tests run beside it.
    """
    command = [sys.executable, *launcher, str(ROOT / "examples" / f"{name}.py"), *arguments]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def files_of(folder: Path) -> set[str]:
    """The endings of the files that an example has left in its folder."""
    return {path.suffix for path in folder.rglob("*") if path.is_file()}
