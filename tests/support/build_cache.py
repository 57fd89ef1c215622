"""What tests compile is kept in build/ until its sources change."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

KEPT = 4  # builds of each name


def fingerprint(facts: object, files: Iterable[Path]) -> str:
    """Changes with the files, and with whatever else the build depends on."""
    state = hashlib.sha256(repr(facts).encode())
    for path in sorted(files):
        state.update(path.name.encode() + b"\0" + path.read_bytes())
    return state.hexdigest()[:16]


def cached_build(folder: Path, name: str, state: str, build: Callable[[Path], None]) -> Path:
    """The folder that `build` fills: folder/<name>-<state>, filled unless it is there already."""
    target = folder / f"{name}-{state}"
    folder.mkdir(parents=True, exist_ok=True)
    with one_process_at_a_time(folder / f"{name}.lock"):
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                filled = Path(scratch) / "filled"
                filled.mkdir()
                build(filled)
                filled.rename(target)  # whole, or not at all
            remove_old_builds(folder, name)
    return target


def remove_old_builds(folder: Path, name: str) -> None:
    """Keeps the newest builds of a name."""
    builds = sorted(folder.glob(f"{name}-*"), key=lambda path: path.stat().st_mtime)
    for path in builds[:-KEPT]:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def one_process_at_a_time(path: Path) -> Iterator[None]:
    """Tests run in several processes, all of which wait for the first to compile."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
