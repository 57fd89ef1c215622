"""Builds the wheels into dist/: one for the CPU and, with a CUDA toolkit, one with CUDA kernels.

Each is compiled in a copy of the sources in build/wheel/. auditwheel then grants the tag of the
oldest systems that it runs on. torch's libraries stay outside, so a wheel needs torch installed.

  --python INTERPRETER     what the wheels are for; any build of torch there gives the headers
  FUSED_DROPOUT_CUDA=0|1   no CUDA wheel, or a failure where no toolkit is (default: nvcc on PATH
                           or CUDA_HOME decides). The rest of the environment is as for setup.py
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from binary import Needs, needs

ROOT = Path(__file__).resolve().parents[2]
TORCH_LIBRARIES = ("libtorch*", "libc10*")
TOOLS = Path(sys.executable).parent


def run(command: list[str], **environment: str) -> str:
    """What the command prints; where it fails, that is shown and the program ends."""
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{done.stdout}\nfailed, exit status {done.returncode}: {' '.join(command)}")
    return done.stdout.strip()


def compiled_wheel(python: str, kind: str) -> Path:
    """The wheel as setuptools makes it, compiled in build/wheel/<kind>."""
    tree = ROOT / "build" / "wheel" / kind
    run(["bench/copy_tree.sh", str(tree)])
    # Objects are kept. What was linked and packed is not, lest a wheel holds what is gone.
    shutil.rmtree(tree / "wheels", ignore_errors=True)
    for pattern in ("lib*", "bdist*"):
        for folder in (tree / "build").glob(pattern):
            shutil.rmtree(folder)
    run(
        [python, "-m", "pip", "wheel", "-qq", "--no-build-isolation", "--no-deps",
         "--wheel-dir", str(tree / "wheels"), str(tree)],
        FUSED_DROPOUT_CUDA="1" if kind == "cuda" else "0",
        FUSED_DROPOUT_COMMIT=run([python, "-Bc", "import setup; print(setup.commit())"]),
    )  # fmt: skip
    (wheel,) = (tree / "wheels").glob("*.whl")
    return wheel


def portable_wheel(wheel: Path, dist: Path) -> Path:
    """The same in `dist`, under the tag that auditwheel grants."""
    name, version, python, abi, _ = wheel.stem.split("-")
    for old in dist.glob(f"{name}-{version}-{python}-{abi}-*.whl"):
        old.unlink()
    excluded = [f"--exclude={library}" for library in TORCH_LIBRARIES]
    command = [str(TOOLS / "auditwheel"), "repair", *excluded, "--wheel-dir", str(dist)]
    run([*command, str(wheel)], PATH=f"{TOOLS}{os.pathsep}{os.environ['PATH']}")  # patchelf's
    (tagged,) = dist.glob(f"{name}-{version}-{python}-{abi}-*.whl")
    return tagged


def unpacked_extension(wheel: Path, folder: Path) -> Path:
    """The extension of a wheel, which holds no library of others beside it."""
    with zipfile.ZipFile(wheel) as archive:
        libraries = [name for name in archive.namelist() if ".so" in name]
        if len(libraries) != 1:
            sys.exit(f"{wheel.name} must hold one library, holds {', '.join(libraries)}")
        return Path(archive.extract(libraries[0], folder))


def line(wheel: Path, found: Needs) -> str:
    """One line about the wheel: name, size, tag, what it needs."""
    size = wheel.stat().st_size / 2**20
    tag = wheel.stem.split("-", 2)[2]
    return f"{wheel.name}: {size:.1f} MiB, tag {tag}, needs {found}"


def kinds() -> list[str]:
    """The wheels to build; where a toolkit is demanded and missing, setup.py says so."""
    forced = os.environ.get("FUSED_DROPOUT_CUDA", "")
    if forced not in ("", "0", "1"):
        sys.exit(f"FUSED_DROPOUT_CUDA must be 0 or 1, got {forced!r}.")
    toolkit = shutil.which("nvcc") or os.environ.get("CUDA_HOME")
    return ["cpu", "cuda"] if forced == "1" or (forced == "" and toolkit) else ["cpu"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", default=sys.executable)
    python = parser.parse_args().python
    dist = ROOT / "dist"
    dist.mkdir(exist_ok=True)
    for kind in kinds():
        wheel = portable_wheel(compiled_wheel(python, kind), dist)
        extension = unpacked_extension(wheel, ROOT / "build" / "wheel" / "unpacked" / kind)
        found = needs(extension)
        print(line(wheel, found), flush=True)
        if objections := found.objections():
            sys.exit("\n".join(objections))
        run([str(TOOLS / "torch-abi-audit"), "--check", "torch", str(extension)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
