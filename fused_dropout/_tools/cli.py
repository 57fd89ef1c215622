"""The console script `fused-dropout`: info, verify, bench, convert-check and so on.

Exit status: 0 done, 1 something is wrong (a failed check, a missing extension), 2 bad arguments.
Each subcommand but `info` lives in a module of its own, with `add_arguments(parser)` and
`run(args) -> exit status`, which may raise `ArgumentError`; it is imported only when asked for, so
that `--help` stays fast.
"""

from __future__ import annotations

import argparse
import importlib
import platform
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple, NoReturn

import torch

import fused_dropout
from fused_dropout._core import extension
from fused_dropout._tools.common import ArgumentError, explained_imports


class _Command(NamedTuple):
    module: str  # in fused_dropout._tools
    help: str
    extra: str  # of pyproject.toml, which installs what the command needs


_COMMANDS = {
    "info": _Command("cli", "what this installation was built from and runs on", "tools"),
    "verify": _Command(
        "verify.command", "check every op on this machine against the reference", "tools"
    ),
    "bench": _Command(
        "bench.command", "measure the ops against their peers and their floors", "tools"
    ),
    "convert-check": _Command(
        "convert_check.command",
        "convert a model's dropout layers and compare what they drop",
        "tools",
    ),
    "reproduce": _Command(
        "reproduce.command", "run experiments of the papers: figures beside theirs", "demo"
    ),
    "demo": _Command(
        "demo.command", "train a small network twice: naive DropConnect and ours", "demo"
    ),
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
    except ArgumentError as error:
        print(f"fused-dropout: error: {error}", file=sys.stderr)
        return 2
    except ImportError as error:  # carries what is missing and the command that mends it
        print(f"fused-dropout: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fused-dropout: interrupted", file=sys.stderr)
        return 130


def _run_subcommand(args: argparse.Namespace) -> int:
    try:
        with explained_imports(_COMMANDS[args.command].extra):
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
    for name, command in _COMMANDS.items():
        subparser = subparsers.add_parser(name, help=command.help, description=command.help)
        if name in arguments:
            with explained_imports(command.extra):
                module = importlib.import_module(f"fused_dropout._tools.{command.module}")
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    return parser


def _check_environment(parser: argparse.ArgumentParser) -> None:
    """A bad FUSED_DROPOUT_ISA is a bad argument; a missing extension is up to the subcommand."""
    try:
        extension.load()
    except ValueError as error:
        parser.error(str(error))
    except ImportError:
        pass


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`info` takes no arguments."""


def run(args: argparse.Namespace) -> int:
    """`info`: print build and run-time facts; 1 if the compiled extension does not load."""
    try:
        facts = {**_build_facts(extension.build_info()), **_isa_facts()}
        problem = None
    except ImportError as error:
        facts = {}
        problem = str(error)

    # Plain text: this command works without any extra, to say what is there.
    for name, value in {**_run_time_facts(), **facts}.items():
        print(f"{name:20}  {value}")
    if problem is None:
        return 0
    print(f"fused-dropout: error: {problem}", file=sys.stderr)
    return 1


def _run_time_facts() -> dict[str, str]:
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
        "oldest torch": _text(build.get("oldest_torch")),
        "CUDA at build": cuda if "no" in (cuda, archs) else f"{cuda} for {archs}",
        "ISAs in the binary": _text(build.get("isas")),
    }
    shown = {"torch", "oldest_torch", "cuda", "cuda_architectures", "isas", "version"}
    return {**facts, **{name: _text(build[name]) for name in build if name not in shown}}


def _isa_facts() -> dict[str, str]:
    return {
        "ISAs on this machine": ", ".join(extension.available_isas()),
        "ISA in use": extension.current_isa(),
    }


def _text(value: str | Sequence[str] | None) -> str:
    return (value if isinstance(value, str) else ", ".join(value or ())) or "no"
