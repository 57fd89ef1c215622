"""`fused-dropout verify`: does every op on this machine agree with the readable reference?

This file drives the checks and prints the table. The checks that all ops share run over the rows of
op_table.py (verify_elementwise.py); masks and DropConnect have modules of their own. Each module
has a function that yields `Check`s. A check passes when its worst error, as a ratio to its own
bound, is at most 1; a raised exception is a failure.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fused_dropout.cli import ArgumentError, positive_int, report_console

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Target:
    """One implementation to check: an instruction set of the CPU, or CUDA."""

    name: str
    device: str

    def active(self) -> AbstractContextManager[object]:
        """Ops run by this implementation inside the returned context."""
        from fused_dropout import _ext

        return _ext.use_isa(self.name) if self.device == "cpu" else nullcontext()


@dataclass(frozen=True)
class Settings:
    """What the checks need to know."""

    quick: bool
    seed: int
    targets: tuple[Target, ...]


@dataclass
class Outcome:
    """Worst error over the cases of one check, as a ratio to its bound; 0 is exact."""

    cases: int = 0
    worst: float = 0.0
    note: str = ""

    def add(self, ratio: float, case: object) -> None:
        """Count one case; the worst one that fails is remembered in the note."""
        self.cases += 1
        ratio = math.inf if math.isnan(ratio) else ratio
        if ratio > self.worst:
            self.worst = ratio
            self.note = str(case) if ratio > 1 else ""

    def add_exact(self, equal: bool, case: object) -> None:
        """Count one case that must agree in every bit."""
        self.add(0.0 if equal else math.inf, case)


@dataclass(frozen=True)
class Check:
    """One row of the table before it is run."""

    op: str
    what: str
    isa: str
    dtype: str
    run: Callable[[], Outcome]


@dataclass(frozen=True)
class Row:
    """One row of the table: `ok` is None for what was not checked."""

    op: str
    what: str
    isa: str
    dtype: str
    cases: int
    worst: float
    ok: bool | None
    note: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `verify`."""
    parser.add_argument("--quick", action="store_true", help="fewer cases (seconds)")
    help_line = "check only its kernels (default: all that can run here)"
    parser.add_argument("--device", choices=("cpu", "cuda"), help=help_line)
    parser.add_argument("--seed", type=_seed, default=0, help="of inputs and masks (default 0)")
    # The cases are small; a check of its own shows that results do not depend on the threads.
    parser.add_argument("--threads", type=positive_int, default=1, help="of the CPU (default 1)")


def _seed(text: str) -> int:
    if not text.strip().isdecimal() or int(text) >= 2**62:
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to 2^62 - 1, got {text!r}")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Run every check, print the table and a summary; 1 if any check failed."""
    from rich.progress import track

    targets, not_checked = find_targets(args.device)
    settings = Settings(quick=args.quick, seed=args.seed, targets=targets)
    console = report_console()
    progress_console = report_console(stderr=True)
    with thread_count(args.threads):
        checks = track(_all_checks(settings), "verify", console=progress_console, transient=True)
        rows = [run_check(check) for check in checks]
    rows += not_checked
    _print_table(rows, console)
    failed = sum(row.ok is False for row in rows)
    passed = sum(row.ok is True for row in rows)
    skipped = "".join(f"; {row.isa} not checked ({row.note})" for row in not_checked)
    verdict = "FAILED" if failed else "ok"
    console.print(f"verify {verdict}: {passed} checks passed, {failed} failed{skipped}")
    return 1 if failed else 0


def _all_checks(settings: Settings) -> list[Check]:
    # Imported here: the check modules need torch and the extension, `--help` does not.
    from fused_dropout.verify_dropconnect import dropconnect_checks
    from fused_dropout.verify_elementwise import elementwise_checks
    from fused_dropout.verify_mask import mask_checks

    per_op: Iterable[Callable[[Settings], Iterator[Check]]] = (
        mask_checks,
        dropconnect_checks,
        elementwise_checks,
    )
    return [check for checks_of in per_op for check in checks_of(settings)]


def run_check(check: Check) -> Row:
    """Run one check; whatever it raises becomes a failed row that shows it."""
    try:
        outcome = check.run()
    except Exception as error:
        message = " ".join(str(error).split())
        outcome = Outcome(0, math.inf, f"{type(error).__name__}: {message}")
    ok = outcome.worst <= 1 and outcome.cases > 0
    note = outcome.note or ("" if ok else "no case ran")
    return Row(check.op, check.what, check.isa, check.dtype, outcome.cases, outcome.worst, ok, note)


def find_targets(device: str | None = None) -> tuple[tuple[Target, ...], list[Row]]:
    """The implementations to check, and a row for each that cannot be checked here.

    `device`: "cpu", "cuda" or None for both. Raises ArgumentError if "cuda" cannot be checked.
    """
    from fused_dropout import _ext

    cpu = tuple(Target(isa, "cpu") for isa in _ext.available_isas())
    cuda = Target("cuda", "cuda")
    if device == "cpu":
        return cpu, []
    obstacle = cuda_obstacle()
    if obstacle is None:
        return (cuda,) if device == "cuda" else (*cpu, cuda), []
    if device == "cuda":
        raise ArgumentError(f"--device cuda: {'; '.join(obstacle)}")
    return cpu, [Row("all", "everything", "cuda", "all", 0, 0.0, None, obstacle[0])]


def cuda_obstacle() -> tuple[str, str] | None:
    """Why no CUDA kernel can run here and how to mend it, or None if one can."""
    import torch

    from fused_dropout import _ext

    if not _ext.build_info()["cuda"]:
        remedy = "rebuild with FUSED_DROPOUT_CUDA=1 where torch is a CUDA build and nvcc on PATH"
        return "no CUDA in this build", remedy
    if not torch.cuda.is_available():
        return "no GPU", "torch.cuda.is_available() is False; nvidia-smi shows what the driver sees"
    return None


@contextlib.contextmanager
def thread_count(threads: int | None) -> Iterator[None]:
    """Let torch use `threads` CPU threads inside the context (None: leave as is)."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _print_table(rows: list[Row], console: Console) -> None:
    from rich.table import Table

    table = Table(title="fused_dropout against its reference")
    for column in ("op", "what", "ISA", "dtype"):
        table.add_column(column)
    table.add_column("cases", justify="right")
    table.add_column("error / bound", justify="right")
    table.add_column("result")
    verdicts = {True: "[green]ok[/]", False: "[red]FAILED[/]", None: "[yellow]not checked[/]"}
    for row in rows:
        worst = "-" if row.ok is None else "exact" if row.worst == 0 else f"{row.worst:.2f}"
        cells = (row.op, row.what, row.isa, row.dtype, str(row.cases), worst)
        table.add_row(*cells, verdicts[row.ok])
    console.print(table)
    for row in rows:
        if row.ok is False:
            where = f"FAILED {row.op}, {row.what}, {row.isa}, {row.dtype}"
            console.print(f"{where}: {row.note}", markup=False, style="red")
