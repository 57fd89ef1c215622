"""`fused-dropout bench`: the ops against their peers and floors."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fused_dropout._tools.bench import compare, dropconnect, family, ops
from fused_dropout._tools.bench.devices import DEVICES, Device
from fused_dropout._tools.bench.dropconnect import Problem, check_memory
from fused_dropout._tools.bench.dropconnect_table import print_result
from fused_dropout._tools.bench.find_device import find_device
from fused_dropout._tools.bench.harness import (
    environment,
    instruction_sets,
    json_document,
    print_replays,
)
from fused_dropout._tools.bench.op import BenchOp, Typical, shrunk
from fused_dropout._tools.bench.sweep_plot import plot
from fused_dropout._tools.bench.sweeps import (
    MAX_SIZE,
    SWEEPS,
    Asked,
    Point,
    points,
    quick_elements,
)
from fused_dropout._tools.common import (
    ArgumentError,
    explained_imports,
    mask_mode,
    output_file,
    positive_int,
    probability,
    report_console,
    thread_count,
)
from fused_dropout.functional._dropconnect import MaskMode

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}
DROPCONNECT = "dropconnect"
ROUNDS, QUICK_ROUNDS, QUICK_SWEEP_ROUNDS = 11, 7, 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `bench`."""
    add = parser.add_argument
    add(
        "ops", nargs="*", metavar="OP",
        help="what to measure (default: the whole family), of: " + ", ".join(ops.names()),
    )  # fmt: skip
    add("--sweep", choices=SWEEPS, help="measure over this (default: one problem for each op)")
    add(
        "--max-size", type=positive_int, default=MAX_SIZE, metavar="N",
        help="most elements of --sweep size (default 2^26)",
    )  # fmt: skip
    add("--quick", action="store_true", help="smaller problems, fewer points and rounds")
    add("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    add("--plot", type=Path, metavar="FILE", help="draw them, as PNG (needs matplotlib)")
    add(
        "--compare", type=Path, metavar="OLD.json",
        help="say what is faster, slower or the same as in a file of --json; exit status 1 if "
        "anything is slower",
    )  # fmt: skip
    add("--device", choices=DEVICES, default="cpu", help="where to measure (default cpu)")
    add(
        "-p", type=probability, action="append", metavar="P",
        help="drop probability; may be repeated (default: the op's)",
    )  # fmt: skip
    add("--dtype", choices=DTYPES, help="default fp32")
    add("--threads", type=positive_int, help="CPU threads (default: torch's)")
    add("--repeats", type=positive_int, help=f"rounds (default {ROUNDS}; fewer with --quick)")
    add("--no-naive", action="store_true", help="leave out the peers in plain PyTorch")
    add(
        "--compile", action=argparse.BooleanOptionalAction, default=False,
        help="measure a peer under torch.compile too (default: no)",
    )  # fmt: skip
    of_dropconnect = parser.add_argument_group("of DropConnect alone").add_argument
    of_dropconnect(
        "--shape", type=_shape, action="append", metavar="B,O,I",
        help="batch, out_features, in_features; may be repeated (default 128,1024,1024)",
    )  # fmt: skip
    of_dropconnect(
        "--mask", type=mask_mode, metavar="MODE",
        help="row, example, batch, or the number of rows that share one (default example)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Measure, print tables, write and draw the figures, compare them with older ones.

    Raises ArgumentError, before anything is measured, where a file cannot be read or written, the
    device cannot be used, an op is unknown or lacks what is asked of it, or a shape of DropConnect
    does not fit in the device's memory.
    """
    named = _names(args)
    asked = _asked(args)
    device = find_device(args.device, quick=args.quick)
    old = compare.read_document(args.compare) if args.compare else None
    if args.plot:
        with explained_imports("demo"):
            import_module("matplotlib")
    console = report_console()
    with (
        thread_count(args.threads),
        output_file("--json", args.json) as write_json,
        output_file("--plot", args.plot) as write_plot,
    ):
        jobs, left_out = _jobs(named, asked, args, device)
        console.print(device.name(), markup=False)
        console.print(instruction_sets(), markup=False)
        for line in left_out:
            console.print(f"left out: {line}", markup=False)
        records = _measure_all(jobs, console)
        write_json(json_document(records, device, key="records"))
        if args.plot:
            write_plot(plot(records, args.sweep, device.name()))
        for path in filter(None, (args.json, args.plot)):
            console.print(f"wrote {path}", markup=False)
        if old is None:
            return 0
        verdicts = _verdicts(old, records, jobs, console)
        compare.print_verdicts(verdicts, args.compare, console)
        for line in compare.differences(old, environment(device)):
            console.print(line, style="yellow", markup=False)
    if not any(found.verdict in compare.JUDGED for found in verdicts):
        raise ArgumentError(f"--compare {args.compare}: no record of this run is in it")
    return 1 if any(found.verdict == compare.SLOWER for found in verdicts) else 0


def _names(args: argparse.Namespace) -> tuple[str, ...]:
    """The ops by name. DropConnect's own options stand for it where none is named."""
    known = ops.names()
    unknown = [name for name in args.ops if name not in known]
    if unknown:
        raise ArgumentError(f"unknown op {unknown[0]!r}; there are {', '.join(known)}")
    given = [option for option in ("shape", "mask") if getattr(args, option) is not None]
    if given and set(args.ops) - {DROPCONNECT}:
        raise ArgumentError(f"--{given[0]} is for {DROPCONNECT} alone, got {', '.join(args.ops)}")
    return (DROPCONNECT,) if given else tuple(dict.fromkeys(args.ops))


def _asked(args: argparse.Namespace) -> Asked:
    for option, sweep in (("threads", "threads"), ("dtype", "dtype")):
        if args.sweep == sweep and getattr(args, option) is not None:
            raise ArgumentError(f"--{option} makes no sense with --sweep {sweep}, which varies it")
    if args.shape and args.sweep in ("size", "shape"):
        raise ArgumentError(f"--shape makes no sense with --sweep {args.sweep}, which varies it")
    if args.shape and args.sweep and len(args.shape) > 1:
        raise ArgumentError("--sweep takes one --shape")
    if args.sweep not in (None, "p") and args.p and len(args.p) > 1:
        raise ArgumentError(f"--sweep {args.sweep} takes one -p")
    problem = None
    if args.shape or args.mask not in (None, "example"):
        options = () if args.mask in (None, "example") else (("mask", args.mask),)
        shape = (args.shape or [ops.ops_named(DROPCONNECT)[0].shape])[0]
        problem = Typical(shape, options=options)
    return Asked(
        args.sweep, tuple(args.p or ()), DTYPES[args.dtype or "fp32"], problem, args.max_size,
        args.quick, args.device,
    )  # fmt: skip


@dataclass(frozen=True)
class _Job:
    """What one table is about."""

    op: str
    name: str
    steps: int  # how often it reports its progress
    measure: Callable[[Callable[[str], object]], list[dict[str, Any]]]  # the records
    print: Callable[[Console], None]


def _jobs(
    named: Sequence[str], asked: Asked, args: argparse.Namespace, device: Device
) -> tuple[list[_Job], list[str]]:
    """A job for each op, and why ops that nobody named are left out."""
    jobs: list[_Job] = []
    left_out = []
    for name in named or ops.bench_ops():
        for op in ops.ops_named(name):
            if op.name == DROPCONNECT and asked.sweep is None:
                jobs += _dropconnect_jobs(op, asked, args, device)
                continue
            try:
                jobs.append(_job(op, asked, args, device))
            except ArgumentError as error:
                if named:
                    raise
                left_out.append(str(error))
    return list({job.name: job for job in jobs}.values()), left_out


def _rounds(args: argparse.Namespace) -> int:
    quick = QUICK_SWEEP_ROUNDS if args.sweep else QUICK_ROUNDS
    return args.repeats or (quick if args.quick else ROUNDS)


def _job(op: BenchOp, asked: Asked, args: argparse.Namespace, device: Device) -> _Job:
    if asked.sweep is None and len(asked.ps) > 1:
        asked = replace(asked, sweep="p")
    rounds, peers = _rounds(args), not args.no_naive
    memory = asked.sweep is None and not args.quick
    places = {point.setting: point for point in points(op, asked)}  # some coincide when shrunk
    results: list[dict[str, Any]] = []

    def measure(progress: Callable[[str], object]) -> list[dict[str, Any]]:
        results.clear()  # of a measurement before
        for point in places.values():
            results.append(
                family.measure(
                    op, point, sweep=asked.sweep, rounds=rounds, peers=peers,
                    compiled=args.compile, device=device, memory=memory,
                    progress=_prefixed(progress, point),
                )
            )  # fmt: skip
        return [record for result in results for record in family.records(result)]

    def show(console: Console) -> None:
        family.print_results(results, console)
        for result in results:
            print_replays(result, console)

    steps = len(places) * family.steps(op, rounds, peers, args.compile)
    return _Job(op.name, op.name, steps, measure, show)


def _prefixed(progress: Callable[[str], object], point: Point) -> Callable[[str], object]:
    where = "" if point.value is None else f"{point.value}, "
    return lambda text: progress(where + text)


def _dropconnect_jobs(
    op: BenchOp, asked: Asked, args: argparse.Namespace, device: Device
) -> Iterator[_Job]:
    """DropConnect's own table: each gradient by itself, and memory."""
    most = quick_elements(op)
    ps = asked.ps or (0.5, 0.1)
    mask: MaskMode | int = args.mask or "example"
    problems = []
    for shape in args.shape or [op.shape]:
        batch, outs, ins = shrunk(shape, most) if args.quick else shape
        problems.append(Problem(batch, outs, ins, ps, asked.dtype, mask))
    for problem in problems:
        check_memory(problem, device)
    for problem in problems:
        yield _dropconnect_job(problem, args, device)


def _dropconnect_job(problem: Problem, args: argparse.Namespace, device: Device) -> _Job:
    rounds, naive = _rounds(args), not args.no_naive
    compiled = naive and args.compile
    results: list[dict[str, Any]] = []

    def measure(progress: Callable[[str], object]) -> list[dict[str, Any]]:
        result = dropconnect.measure(
            problem, rounds=rounds, naive=naive, compiled=compiled, device=device,
            progress=progress,
        )  # fmt: skip
        results[:] = [result]
        return family.records(dropconnect.as_family(result))

    def show(console: Console) -> None:
        print_result(results[0], console)
        print_replays(results[0], console)

    subjects = len(problem.ps) + 1 + naive + compiled
    steps = len(dropconnect.PHASES) * subjects * (1 + rounds)
    sides = (problem.batch, problem.out_features, problem.in_features)
    return _Job(DROPCONNECT, f"{DROPCONNECT} {sides}", steps, measure, show)


def _measure_all(jobs: Sequence[_Job], console: Console | None) -> list[dict[str, Any]]:
    """The records of all jobs; with a console, a job's table is printed when it is done."""
    records: list[dict[str, Any]] = []
    done = 0
    with _progress() as progress:
        task = progress.add_task("", total=sum(job.steps for job in jobs))
        for job in jobs:
            records += job.measure(_advance(progress, task, job.name))
            done += job.steps
            progress.update(task, completed=done)
            if console is not None:
                progress.stop()  # a table is not to be written into the bar
                job.print(console)
                progress.start()
    return records


def _progress() -> Progress:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        BarColumn(bar_width=20), TimeRemainingColumn(), TextColumn("{task.description}"),
        console=report_console(stderr=True), transient=True,
    )  # fmt: skip


def _advance(progress: Progress, task: Any, name: str) -> Callable[[str], object]:
    return lambda text: progress.update(task, advance=1, description=f"{name}: {text}")


def _verdicts(
    old: dict[str, Any],
    records: Sequence[compare.Record],
    jobs: Sequence[_Job],
    console: Console,
) -> list[compare.Verdict]:
    """What became of every record; ops that look slower are measured once more."""
    verdicts = compare.compare(old["records"], records)
    suspects = {found.op for found in verdicts if found.verdict == compare.SLOWER}
    if not suspects:
        return verdicts
    console.print(f"measuring again what looks slower: {', '.join(sorted(suspects))}")
    again = _measure_all([job for job in jobs if job.op in suspects], None)
    return compare.confirmed(verdicts, compare.compare(old["records"], again))


def _shape(text: str) -> tuple[int, int, int]:
    try:
        batch, out_features, in_features = (positive_int(part) for part in text.split(","))
    except (argparse.ArgumentTypeError, ValueError):
        raise argparse.ArgumentTypeError(
            f"must be three integers from 1 to 2^31 - 1, B,O,I, got {text!r}"
        ) from None
    return batch, out_features, in_features
