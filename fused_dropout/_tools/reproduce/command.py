"""`fused-dropout reproduce`: the experiments of the founding papers, a name each.

Exit status: 0 done, 1 the data contradict a claim or a process was killed, 2 bad arguments.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fused_dropout._tools.common import ArgumentError, output_file, positive_int, report_console
from fused_dropout._tools.reproduce import data, plots
from fused_dropout._tools.reproduce.collect import results_of
from fused_dropout._tools.reproduce.experiment import Experiment
from fused_dropout._tools.reproduce.experiments import EXPERIMENTS, find_experiment
from fused_dropout._tools.reproduce.report import print_report
from fused_dropout._tools.reproduce.results import CONTRADICTED, Results
from fused_dropout._tools.reproduce.runner import Runner, Task, default_processes

_OUT = "fused-dropout-reproduce"
_KILLED = "a process was killed, perhaps for want of memory; --processes 1 takes the least"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `fused-dropout reproduce`."""
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="experiments, or all; none: lists them")
    add(
        "--data",
        metavar="DIR",
        help="folder with the IDX files of MNIST or Fashion-MNIST, or with folders mnist and "
        "fashion-mnist that hold them; CIFAR-10 and SVHN as torchvision keeps them; default: the "
        "8x8 digits bundled with scikit-learn, on which no claim is judged",
    )
    add("--seeds", type=positive_int, metavar="N", help="runs of each setting (default: its own)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--quick", action="store_true", help="at most 10 seconds a name: shows that it runs"
    )
    length.add_argument(
        "--full", action="store_true", help="the source's own schedule, which may take days"
    )
    add("--processes", type=positive_int, metavar="N", help="default: one for each processor")
    add("--out", default=_OUT, metavar="DIR", help=f"for NAME.json and NAME.png (default: {_OUT})")


def run(args: argparse.Namespace) -> int:
    """Run the experiments in turn; 1 if the data contradict a claim of any."""
    console = report_console()
    if not args.names:
        _print_list(console)
        return 0
    experiments = _chosen(args.names)
    for module in ("matplotlib", "scipy"):  # better missed now than after the training
        importlib.import_module(module)
    budget = "quick" if args.quick else "full" if args.full else "default"
    kinds = [data.find(experiment.data, args.data) for experiment in experiments]
    folder = _output_folder(args.out)
    runner = Runner(args.processes or default_processes())
    contradicted = []
    try:
        for experiment, kind in zip(experiments, kinds, strict=True):
            with (
                output_file("--out", folder / f"{experiment.name}.json") as write_json,
                output_file("--out", folder / f"{experiment.name}.png") as write_png,
            ):
                results = _run_experiment(console, runner, experiment, kind, budget, args)
                write_json(results.to_json())  # first: it took long
                print_report(console, experiment, results)
                write_png(plots.picture(experiment, results))
            contradicted += [v.claim for v in results.verdicts if v.state == CONTRADICTED]
            console.print(
                f"{experiment.name}: {results.document['seconds']:.0f} s; "
                f"{folder / experiment.name}.json and .png\n",
                soft_wrap=True,
                highlight=False,
            )
    except BrokenProcessPool:
        print(f"fused-dropout reproduce: error: {_KILLED}", file=sys.stderr)
        return 1
    finally:
        runner.close()
    for claim in contradicted:
        console.print(f"contradicted: {claim}", highlight=False, markup=False)
    return 1 if contradicted else 0


def _run_experiment(
    console: Console,
    runner: Runner,
    experiment: Experiment,
    kind: str,
    budget_name: str,
    args: argparse.Namespace,
) -> Results:
    seeds = experiment.budget(budget_name).seeds
    start = time.monotonic()
    if kind:
        data.load(kind, args.data)  # so that damaged files are reported before any process starts
    tasks = [
        Task(experiment.name, place, seed, budget_name, kind, args.data)
        for seed in range(args.seeds or seeds)
        for place, setting in enumerate(experiment.settings)
        if args.seeds or setting.seeds is None or seed < setting.seeds
    ]
    found = runner.run(tasks, console)
    runs = {
        setting.name: [
            measured for task, measured in zip(tasks, found, strict=True) if task.setting == place
        ]
        for place, setting in enumerate(experiment.settings)
    }
    seconds = time.monotonic() - start
    return results_of(experiment, runs, budget=budget_name, data=kind, seconds=seconds)


def _print_list(console: Console) -> None:
    table = Table("name", "what it shows", "time on 2 cores", title="fused-dropout reproduce NAME")
    for experiment in EXPERIMENTS:
        table.add_row(experiment.name, experiment.title, experiment.default.time)
    console.print(table)
    console.print(
        "With --quick seconds each; with --full the source's own schedule: "
        + ", ".join(f"{e.name} {e.full.time}" for e in EXPERIMENTS if e.full.time),
        highlight=False,
    )


def _chosen(names: list[str]) -> list[Experiment]:
    if names == ["all"]:
        return list(EXPERIMENTS)
    known = [experiment.name for experiment in EXPERIMENTS]
    for name in names:
        if name not in known:
            raise ArgumentError(f"no experiment is called {name!r}; there are {', '.join(known)}")
    return [find_experiment(name) for name in dict.fromkeys(names)]


def _output_folder(name: str) -> Path:
    folder = Path(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"cannot write --out {folder}: {error.strerror}") from error
    return folder
