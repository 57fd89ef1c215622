"""`fused-dropout bench`: the DropConnect layer against plain PyTorch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from fused_dropout._tools.bench.devices import DEVICES
from fused_dropout._tools.bench.dropconnect import Problem, check_memory, measure
from fused_dropout._tools.bench.dropconnect_table import print_result
from fused_dropout._tools.bench.find_device import find_device
from fused_dropout._tools.bench.harness import json_document, print_replays
from fused_dropout._tools.common import (
    mask_mode,
    output_file,
    positive_int,
    probability,
    report_console,
    thread_count,
)

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `bench`."""
    add = parser.add_argument
    add("--device", choices=DEVICES, default="cpu", help="where to measure (default cpu)")
    add(
        "--shape", type=_shape, action="append", metavar="B,O,I",
        help="batch, out_features, in_features; may be repeated (default 128,1024,1024)",
    )  # fmt: skip
    add(
        "-p", type=probability, action="append", metavar="P",
        help="drop probability; may be repeated (default 0.5 and 0.1)",
    )  # fmt: skip
    add("--dtype", choices=DTYPES, default="fp32")
    add("--threads", type=positive_int, help="CPU threads (default: torch's)")
    add(
        "--mask", type=mask_mode, default="example", metavar="MODE",
        help="row, example, batch, or the number of rows that share one (default example)",
    )  # fmt: skip
    add("--repeats", type=positive_int, default=11, help="rounds (default 11)")
    add("--no-naive", action="store_true", help="leave out plain PyTorch (and its compiled form)")
    add("--no-compile", action="store_true", help="leave out torch.compile")
    add("--json", type=Path, metavar="FILE", help="write all figures to FILE")


def run(args: argparse.Namespace) -> int:
    """Measure, print one table per shape, write the JSON.

    Raises ArgumentError, before anything is measured, where the JSON cannot be written, the device
    cannot be used, or a shape does not fit in its memory.
    """

    device = find_device(args.device)
    ps = tuple(args.p or (0.5, 0.1))
    problems = [
        Problem(batch, outs, ins, ps, DTYPES[args.dtype], args.mask)
        for batch, outs, ins in args.shape or [(128, 1024, 1024)]
    ]
    for problem in problems:
        check_memory(problem, device)
    console = report_console()
    results = []
    with _json_file(args.json) as write, thread_count(args.threads):
        for problem in problems:
            with report_console(stderr=True).status("measuring") as status:
                result = measure(
                    problem, rounds=args.repeats, naive=not args.no_naive,
                    compiled=not (args.no_naive or args.no_compile), device=device,
                    progress=status.update,
                )  # fmt: skip
            print_result(result, console)
            print_replays(result, console)
            results.append(result)
        if write is not None:
            write(json_document(results, device))
            console.print(f"wrote {args.json}", markup=False)
    return 0


def _json_file(
    path: Path | None,
) -> AbstractContextManager[Callable[[bytes], None] | None]:
    return nullcontext() if path is None else output_file("--json", path)


def _shape(text: str) -> tuple[int, int, int]:
    try:
        batch, out_features, in_features = (positive_int(part) for part in text.split(","))
    except (argparse.ArgumentTypeError, ValueError):
        raise argparse.ArgumentTypeError(
            f"must be three integers from 1 to 2^31 - 1, B,O,I, got {text!r}"
        ) from None
    return batch, out_features, in_features
