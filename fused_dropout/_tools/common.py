"""What the commands share: argument types, files that they write, their console, threads."""

from __future__ import annotations

import argparse
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from rich.console import Console


class ArgumentError(ValueError):
    """An argument that does not fit the data or the machine; the message is one clear line."""


_MODULES_OF_EXTRAS = ("rich", "matplotlib", "sklearn", "scipy")


@contextmanager
def explained_imports(extra: str) -> Iterator[None]:
    """An import that the extra of this name makes possible becomes an ArgumentError that says so.

    Extras are in pyproject.toml.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in _MODULES_OF_EXTRAS:
            raise
        remedy = f"pip install 'fused_dropout[{extra}]'"
        raise ArgumentError(f"this needs {module}, which is not installed: {remedy}") from error


@contextmanager
def output_file(option: str, path: Path | None) -> Iterator[Callable[[bytes], None]]:
    """Open a file before a long run, so that the run cannot end with nowhere to write.

    Yields a function that replaces the file's content. Until it is called, a file that was there
    before stays as it is; a new one is removed again if it never is. What cannot be opened or
    written raises ArgumentError with the option and the path. Without a path, the option was not
    given: the function does nothing.
    """
    if path is None:
        yield lambda content: None
        return
    with _naming(option, path):
        file, is_new = _open_for_output(path)
    written = False

    def write(content: bytes) -> None:
        nonlocal written
        with _naming(option, path):
            if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                file.truncate(0)
            rest = memoryview(content)
            while rest:
                rest = rest[file.write(rest) :]
        written = True

    with file:
        try:
            yield write
        finally:
            if is_new and not written:
                path.unlink(missing_ok=True)


@contextmanager
def _naming(option: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArgumentError(f"cannot write {option} {path}: {error.strerror}") from error


def _open_for_output(path: Path) -> tuple[FileIO, bool]:
    """The file, unbuffered and not yet truncated, and whether it is new."""
    try:
        return path.open("xb", buffering=0), True
    except FileExistsError:
        return path.open("ab", buffering=0), False


def report_console(*, stderr: bool = False) -> Console:
    """A rich console; a pipe or a file gets 120 columns, for tables that stay readable."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else 120)


def positive_int(text: str) -> int:
    """An argparse type: an integer from 1 to 2^31 - 1."""
    return _integer_from_1(text, "", bits=31)


def probability(text: str) -> float:
    """An argparse type: a number in [0, 1]."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"must be a number in [0, 1], got {text!r}")
    return value


def mask_mode(text: str) -> str | int:
    """An argparse type: the `mask` argument of the layers."""
    if text in ("row", "example", "batch"):
        return text
    return _integer_from_1(text, "row, example, batch, or ", bits=63)


def _integer_from_1(text: str, other_choices: str, *, bits: int) -> int:
    try:
        value = int(text) if text.strip().isdecimal() else 0
    except ValueError:  # more digits than Python converts
        value = 2**bits
    if not 1 <= value < 2**bits:
        raise argparse.ArgumentTypeError(
            f"must be {other_choices}an integer from 1 to 2^{bits} - 1, got {text!r}"
        )
    return value


@contextmanager
def thread_count(threads: int | None) -> Iterator[None]:
    """Let torch use `threads` CPU threads inside the context (None: leave as is)."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
