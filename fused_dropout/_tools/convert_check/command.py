"""`fused-dropout convert-check MODULE:FACTORY`: what fused_dropout.replace does with a model.

The factory returns a model, or a model and its example inputs. The model is converted, every
replaced layer is run before and after on inputs made for its kind, and with example inputs the
model itself too: in evaluation the outputs must be the same to the bit. Exit status 1 if not.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fused_dropout._models.check.finding import place
from fused_dropout._models.check.inputs import split_inputs
from fused_dropout._tools.common import ArgumentError, output_file, report_console, thread_count
from fused_dropout._tools.convert_check.compare import FALSE_ALARMS, SIGMAS, Outcome, Site, compare

if TYPE_CHECKING:
    from rich.console import Console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `convert-check`."""
    add = parser.add_argument
    add(
        "factory", metavar="MODULE:FACTORY",
        help="a function without arguments that returns the model, or (model, inputs); inputs are "
        "a tensor, a tuple of arguments or a dict of keyword arguments",
    )  # fmt: skip
    add(
        "--linear", action="append", default=[], metavar="[NAME=]P",
        help="give DropConnect of this p to the linear layers of this name or pattern, or to all "
        "torch.nn.Linear; may be repeated",
    )  # fmt: skip
    add("--seed", type=int, default=0, help="of masks and of the factory (default 0)")
    add("--json", type=Path, metavar="FILE", help="write all figures to FILE")


def run(args: argparse.Namespace) -> int:
    """Convert, compare, print; 1 if a check failed."""
    linear = _linear(args.linear)
    with output_file("--json", args.json) as write_json, thread_count(None):
        torch.manual_seed(args.seed)
        model, inputs = _made_by(args.factory)
        try:
            outcome = compare(model, inputs, linear)
        except (ValueError, TypeError) as error:
            raise ArgumentError(str(error)) from error
        console = report_console()
        _print(outcome, inputs is not None, console)
        write_json(json.dumps(_document(outcome), indent=1).encode() + b"\n")
    return 0 if outcome.passed else 1


def _linear(given: list[str]) -> float | dict[str, float] | None:
    by_name: dict[str, float] = {}
    for text in given:
        name, _, p = text.rpartition("=")
        try:
            by_name[name] = float(p)
        except ValueError:
            raise ArgumentError(f"--linear must be P or NAME=P, got {text!r}") from None
    if "" in by_name and len(by_name) > 1:
        raise ArgumentError("--linear must be one P for all layers, or NAME=P each time")
    return by_name.get("", by_name or None)


def _made_by(text: str) -> tuple[nn.Module, Any]:
    """The model, and its inputs as (args, kwargs) or None."""
    module_name, colon, name = text.partition(":")
    if not (module_name and colon and name):
        raise ArgumentError(f"the factory must be given as MODULE:FACTORY, got {text!r}")
    sys.path.insert(0, "")  # as `python -m` does
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ArgumentError(f"cannot find {text}: {error}") from error
    made = factory()
    if isinstance(made, nn.Module):
        return made, None
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], nn.Module)):
        raise ArgumentError(
            f"{text} must return a Module, or a Module and its inputs, got {type(made).__name__}"
        )
    try:
        return made[0], split_inputs(made[1])
    except TypeError as error:
        raise ArgumentError(f"{text}: {error}") from error


def _print(outcome: Outcome, ran: bool, console: Console) -> None:
    from rich.table import Table

    table = Table(title="Replaced layers, and the share that they drop")
    for column in ("name", "before", "after"):
        table.add_column(column, overflow="fold")
    for column in ("p", "dropped\nbefore", "dropped\nafter", "standard\nerrors"):
        table.add_column(column, justify="right")
    table.add_column("result")
    for site in outcome.sites:
        cells = (site.layer.p, site.before, site.after)
        table.add_row(
            place(site.layer.name), _short(site.layer.before), _short(site.layer.after),
            *("-" if cell is None else f"{cell:.4f}" for cell in cells),
            "-" if site.sigmas is None else f"{site.sigmas:.1f}", _verdict(site),
        )  # fmt: skip
    console.print(table)
    if outcome.report.left:
        console.print("Left as they are:")
        for left in outcome.report.left:
            console.print(f"  {left}", markup=False, highlight=False, soft_wrap=True)
    for name, operators in (outcome.unexplained or {}).items():
        text = f"{place(name)} draws random numbers too, by {operators}"
        console.print(text, markup=False, soft_wrap=True)
    for problem in outcome.problems:
        console.print(problem, markup=False, style="red", soft_wrap=True)
    measured = sum(site.after is not None for site in outcome.sites)
    chance = FALSE_ALARMS * sum(site.comparisons for site in outcome.sites)
    console.print(
        f"Rates agree within {SIGMAS:g} standard errors with p and with those before; of "
        f"{measured} correct layers one is called wrong with a probability of at most {chance:.0e}."
    )
    if not ran:
        console.print("No example inputs: outputs in evaluation were not compared.")
    verdict = "ok" if outcome.passed else "FAILED"
    console.print(
        f"convert-check {verdict}: {len(outcome.sites)} replaced, {len(outcome.report.left)} left"
    )


def _short(kind: str) -> str:
    """A class by its package and its name: ``timm.DropPath``; ``torch.nn.Dropout`` as it is."""
    parts = kind.split(".")
    return kind if len(parts) <= 3 else f"{parts[0]}.{parts[-1]}"


def _verdict(site: Site) -> str:
    if site.problem:
        return f"[red]FAILED: {site.problem}[/]"
    return "[yellow]not measured[/]" if site.after is None else "[green]ok[/]"


def _document(outcome: Outcome) -> dict[str, Any]:
    sites = [
        {
            **site.layer._asdict(),
            "dropped_before": site.before,
            "dropped_after": site.after,
            "standard_errors": site.sigmas,
            "problem": site.problem,
        }
        for site in outcome.sites
    ]
    return {
        "passed": outcome.passed,
        "replaced": sites,
        "left": [left._asdict() for left in outcome.report.left],
        "problems": outcome.problems,
        "unexplained": outcome.unexplained,
    }
