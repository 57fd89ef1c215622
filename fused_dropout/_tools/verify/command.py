"""`fused-dropout verify`: does every op on this machine agree with the readable reference?

This file drives the checks and prints their results. The checks that all ops share run over the
rows of the table of ops (table.py); masks and DropConnect have modules of their own. Each module
has a function that yields `Check`s. A check passes when its worst error, as a ratio to its own
bound, is at most 1; a raised exception is a failure.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from fused_dropout._core import extension
from fused_dropout._tools.common import ArgumentError, positive_int, report_console, thread_count
from fused_dropout._tools.verify.checks import Check, Row, Settings, Target, run_check
from fused_dropout._tools.verify.dropconnect import dropconnect_checks
from fused_dropout._tools.verify.mask import mask_checks
from fused_dropout._tools.verify.table import table_checks

if TYPE_CHECKING:
    from rich.console import Console


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
    per_op = (mask_checks, dropconnect_checks, table_checks)
    return [check for checks_of in per_op for check in checks_of(settings)]


def find_targets(device: str | None = None) -> tuple[tuple[Target, ...], list[Row]]:
    """The implementations to check, and a row for each that cannot be checked here.

    `device`: "cpu", "cuda" or None for both. Raises ArgumentError if "cuda" cannot be checked.
    """
    cpu = tuple(Target(isa, "cpu") for isa in extension.available_isas())
    cuda = Target("cuda", "cuda")
    if device == "cpu":
        return cpu, []
    obstacle = extension.cuda_obstacle()
    if obstacle is None:
        return (cuda,) if device == "cuda" else (*cpu, cuda), []
    if device == "cuda":
        raise ArgumentError(f"--device cuda: {'; '.join(obstacle)}")
    return cpu, [Row("all", "everything", "cuda", "all", 0, 0.0, None, obstacle[0])]


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
