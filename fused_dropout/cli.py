"""The console script `fused-dropout`: info, verify, bench, demo.

Exit status: 0 done, 1 something is wrong (a failed check, a missing extension), 2 bad arguments.
Each subcommand but `info` lives in a module of its own, with `add_arguments(parser)` and
`run(args) -> exit status`, which may raise `ArgumentError`; it is imported only when asked for, so
that `--help` stays fast.
"""

from __future__ import annotations

import argparse
import importlib
import os
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import fused_dropout

if TYPE_CHECKING:
    from rich.console import Console

# name: (module, one-line help)
_COMMANDS = {
    "info": ("fused_dropout.cli", "what this installation was built from and runs on"),
    "verify": ("fused_dropout.verify", "check every op on this machine against the reference"),
    "bench": ("fused_dropout.benchmark", "measure the DropConnect layer against plain PyTorch"),
    "demo": ("fused_dropout.demo", "train a small network twice: naive DropConnect and ours"),
}


class _Parser(argparse.ArgumentParser):
    """Reports a bad argument in one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; `argv` defaults to the command line. Returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        parser = _build_parser(arguments)
        args = parser.parse_args(arguments)
        _check_environment(parser)
        return _run_subcommand(args)
    except ImportError as error:  # carries what is missing and the command that mends it
        print(f"fused-dropout: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fused-dropout: interrupted", file=sys.stderr)
        return 130


def _run_subcommand(args: argparse.Namespace) -> int:
    try:
        return int(args.run(args))
    except ArgumentError as error:
        print(f"fused-dropout {args.command}: error: {error}", file=sys.stderr)
        return 2


def _build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    description = "Fused DropConnect and dropout masks for PyTorch."
    parser = _Parser(prog="fused-dropout", description=description)
    version = f"fused-dropout {fused_dropout.__version__}"
    parser.add_argument("--version", action="version", version=version)
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module_name, help_line) in _COMMANDS.items():
        subparser = subparsers.add_parser(name, help=help_line, description=help_line)
        if name in arguments:
            module = importlib.import_module(module_name)
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


def _check_environment(parser: argparse.ArgumentParser) -> None:
    """A bad FUSED_DROPOUT_ISA is a bad argument; a missing extension is up to the subcommand."""
    from fused_dropout import _ext

    try:
        _ext.load()
    except ValueError as error:
        parser.error(str(error))
    except ImportError:
        pass


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`info` takes no arguments."""


def run(args: argparse.Namespace) -> int:
    """`info`: print build and run-time facts; 1 if the compiled extension does not load."""
    from rich.table import Table

    try:
        from fused_dropout import _ext

        facts = {**_build_facts(_ext.build_info()), **_isa_facts()}
        problem = None
    except ImportError as error:
        facts = {}
        problem = str(error)

    table = Table("fact", "value", title="fused_dropout")
    for name, value in {**_run_time_facts(), **facts}.items():
        table.add_row(name, value)
    report_console().print(table)
    if problem is None:
        return 0
    print(f"fused-dropout: error: {problem}", file=sys.stderr)
    return 1


def _run_time_facts() -> dict[str, str]:
    import platform

    import torch

    return {
        "fused_dropout": fused_dropout.__version__,
        "python": platform.python_version(),
        "torch now": torch.__version__,
        "CUDA device now": torch.cuda.get_device_name() if torch.cuda.is_available() else "no",
        "threads": str(torch.get_num_threads()),
    }


def _build_facts(build: Mapping[str, str | list[str]]) -> dict[str, str]:
    cuda, archs = _text(build.get("cuda")), _text(build.get("cuda_architectures"))
    facts = {
        "torch at build": _text(build.get("torch")),
        "CUDA at build": cuda if "no" in (cuda, archs) else f"{cuda} for {archs}",
        "ISAs in the binary": _text(build.get("isas")),
    }
    shown = {"torch", "cuda", "cuda_architectures", "isas", "version"}
    return {**facts, **{name: _text(build[name]) for name in build if name not in shown}}


def _isa_facts() -> dict[str, str]:
    from fused_dropout import _ext

    return {
        "ISAs on this machine": ", ".join(_ext.available_isas()),
        "ISA in use": _ext.current_isa(),
    }


def _text(value: str | Sequence[str] | None) -> str:
    return (value if isinstance(value, str) else ", ".join(value or ())) or "no"


# Shared by the subcommands.


class ArgumentError(ValueError):
    """An argument that does not fit the data or the machine; the message is one clear line."""


@contextmanager
def output_file(option: str, path: Path) -> Iterator[Callable[[bytes], None]]:
    """Open a file before a long run, so that the run cannot end with nowhere to write.

    Yields a function that replaces the file's content. Until it is called, a file that was there
    before stays as it is; a new one is removed again if it never is. What cannot be opened or
    written raises ArgumentError with the option and the path.
    """
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
