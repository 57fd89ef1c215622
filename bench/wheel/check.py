"""Installs the CPU wheel of dist/ beside one release of torch and tries it: `make wheel-check`.

The interpreter's environment is not changed: the wheel goes to a folder that is removed at the end.
Nothing of the checkout is imported; its tests run from a copy that lacks the package.

  --python INTERPRETER   has torch, rich, pytest and hypothesis; pytest-xdist if it is there is used
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/table", "tests/package/test_training_step.py")
TWO_FILES_AT_ONCE = ("-n", "2", "--dist", "loadfile")
TAG = "import sys; print('cp{0}{1}'.format(*sys.version_info))"
INSTALLED = """
import sys, torch, fused_dropout
from pathlib import Path
assert Path(fused_dropout.__file__).is_relative_to(sys.argv[1]), fused_dropout.__file__
print(f"{sys.argv[2]} beside torch {torch.__version__}", flush=True)
"""


def cpu_wheel(dist: Path, python: str) -> Path:
    """The wheel for this Python ("cp311"); its version has no label, as CUDA's has."""
    found = [w for w in dist.glob(f"fused_dropout-*-{python}-*.whl") if "+" not in w.name]
    if len(found) != 1:
        names = ", ".join(w.name for w in found) or "none"
        sys.exit(f"dist/ must hold one CPU wheel for {python}, found {names}: make wheel")
    return found[0]


def environment(site: Path) -> dict[str, str]:
    """This process's, with the wheel first among Python's folders, and no GPU."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "FUSED_DROPOUT"))}
    return {**kept, "PYTHONPATH": str(site), "CUDA_VISIBLE_DEVICES": ""}


def check(python: str, scratch: Path) -> None:
    """Raises CalledProcessError at the first thing that fails."""
    site, empty, tree = scratch / "site", scratch / "empty", scratch / "tree"
    tag = subprocess.run([python, "-c", TAG], check=True, capture_output=True, text=True)
    wheel = cpu_wheel(ROOT / "dist", tag.stdout.strip())
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-qq", "--no-deps"]
    subprocess.run([*install, "--no-index", "--target", str(site), str(wheel)], check=True)
    subprocess.run(["bench/copy_tree.sh", str(tree)], cwd=ROOT, check=True)
    shutil.rmtree(tree / "fused_dropout")
    empty.mkdir()

    def run(*command: str, folder: Path = empty) -> None:
        subprocess.run(command, cwd=folder, env=environment(site), check=True)

    run(python, "-c", INSTALLED, str(site), wheel.name)
    run(str(site / "bin" / "fused-dropout"), "verify", "--quick")
    xdist = subprocess.run([python, "-c", "import xdist"], capture_output=True)
    at_once = () if xdist.returncode else TWO_FILES_AT_ONCE
    pytest = (python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *at_once)
    run(*pytest, *TESTS, folder=tree)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", required=True, type=os.path.abspath)
    python = parser.parse_args().python
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fused_dropout-wheel-") as scratch:
        try:
            check(python, Path(scratch))
        except subprocess.CalledProcessError as error:
            sys.exit(f"the wheel failed with {python}: {error}")
    print(f"the wheel is good with {python}: {time.monotonic() - start:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
