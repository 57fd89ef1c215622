"""Calls with wrong and odd arguments to every function, module and raw operator.

    python -m tests.hostile --calls 100000 --seed 1
    python -m tests.hostile --seed 1 --only 4711     # one call again, as Python code

Each call is drawn from the seed and its own number. Good arguments must give what the reference
gives, gradients included, and change nothing but what is written in place; bad ones must raise an
exception that names the argument. Calls run in child processes on a heap that is checked, so that
a crash or a hang is a result like others. The exit status is 1 if any call failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from random import Random
from typing import TYPE_CHECKING

from . import processes

if TYPE_CHECKING:
    from .call import Call  # imports torch, which must wait for the right malloc

_PERTURB = (1, 128)  # what memory is filled with: 0xfe or 0x7f


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile")
    parser.add_argument("--calls", type=int, default=1000, help="how many (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="what all calls are drawn from")
    parser.add_argument("--only", type=int, metavar="N", help="one call, shown as Python code")
    parser.add_argument("--first", type=int, default=0, help="the first call's number")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--limit", type=float, default=120.0, help="seconds that a call may take")
    parser.add_argument("--show", type=int, default=1, help="examples of each kind of failure")
    options = parser.parse_args()
    program = ["-m", __spec__.parent or "hostile", *sys.argv[1:]]
    processes.with_checked_malloc(_PERTURB[options.seed % 2], program)
    draw = _drawing(options.seed)
    if options.only is not None:
        return _replay(draw, options.only)
    if not processes.heap_is_checked():
        print("the heap is not checked here: install glibc's libc_malloc_debug.so.0")
        return 1
    print("heap checked: one byte written past a tensor aborts the process", flush=True)
    return _run_all(draw, options)


def _drawing(seed: int) -> Callable[[int], Call]:
    import torch

    from . import functions, masks, modules, operators

    masks.install()
    unknown = functions.missing() + modules.missing()
    if unknown:
        raise SystemExit(f"no calls are drawn of: {', '.join(unknown)}")
    torch.set_num_threads(1)  # no threads before the fork; children set their own
    warnings.simplefilter("ignore")
    kinds = (functions.draw_function, operators.draw_operator, modules.draw_module)

    def draw(number: int) -> Call:
        random = Random(f"{seed}:{number}")
        return random.choices(kinds, (5, 3, 2))[0](random)

    return draw


def _judged(draw: Callable[[int], Call], number: int) -> tuple[str, str]:
    try:
        return draw(number).run()
    except Exception:
        return "!this program failed", traceback.format_exc()


def _replay(draw: Callable[[int], Call], number: int) -> int:
    call = draw(number)
    print(call.code(), flush=True)
    (report,) = processes.run_all(partial(_judged, draw), [number], 1, 60.0)
    print(f"\n# {call.target}: {report.outcome}")
    print("".join(f"# {line}\n" for line in report.details.splitlines()), end="")
    return int(report.outcome.startswith("!"))


def _run_all(draw: Callable[[int], Call], options: argparse.Namespace) -> int:
    run = partial(_judged, draw)
    start = time.monotonic()
    outcomes: Counter[str] = Counter()
    failures: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    numbers = range(options.first, options.first + options.calls)
    done = 0
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    try:
        for report in processes.run_all(run, numbers, options.processes, options.limit):
            done += 1
            if report.outcome.startswith("!"):
                target = draw(report.number).target
                failures[report.outcome[1:], target].append((report.number, report.details))
            else:
                outcomes[report.outcome] += 1
            if sys.stderr.isatty() and done % 500 == 0:
                print(f"\r{done} of {len(numbers)}", end="\r", flush=True, file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped before the end")
    seconds = time.monotonic() - start
    failed = sum(map(len, failures.values()))
    print(f"{done} calls in {seconds:.0f} s, seed {options.seed}: {failed} failed")
    for outcome, count in sorted(outcomes.items()):
        print(f"  {count:7} {outcome}")
    for kind in sorted({kind for kind, _ in failures}):
        print(f"\nFAILED: {kind}")
        for (_, target), calls in sorted(item for item in failures.items() if item[0][0] == kind):
            for place, (number, details) in enumerate(sorted(calls)[: options.show]):
                print(f"  {len(calls) if place == 0 else '':>5} {target}: --only {number}")
                print("        " + " ".join(details.split())[:300])
    if failures:
        print(
            f"\nOne again, as Python code: python -m tests.hostile --seed {options.seed} --only N"
        )
    return int(failed > 0 or done < len(numbers))


if __name__ == "__main__":
    sys.exit(main())
