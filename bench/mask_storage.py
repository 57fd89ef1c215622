"""Regenerate the masks in backward, or keep packed bits? Run: python bench/mask_storage.py

Measures forward + backward of `dropconnect_linear` with both settings of `mask_storage`, over drop
probabilities that need few or many binary digits and shapes from small to large, on the CPU or with
`--device cuda` on a GPU. The rule behind `mask_storage="auto"` is read off this table, a CPU's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial

from rich.table import Table

from fused_dropout._tools.bench.devices import DEVICES, Device
from fused_dropout._tools.bench.dropconnect import Call, Calls, Problem
from fused_dropout._tools.bench.find_device import find_device
from fused_dropout._tools.bench.harness import (
    Measurements,
    Subject,
    load_warning,
    measure_interleaved,
    ratio,
    spread,
)
from fused_dropout._tools.common import ArgumentError, positive_int, report_console, thread_count
from fused_dropout.functional import dropconnect_linear
from fused_dropout.functional._dropconnect import MaskStorage

PS = (0.5, 0.25, 0.1, 0.3)
SHAPES = (  # B, O, I
    (16, 64, 64),
    (64, 256, 256),
    (128, 512, 512),
    (128, 1024, 1024),
    (128, 2048, 2048),
    (128, 4096, 4096),
)
STORAGES: tuple[MaskStorage, ...] = ("regenerate", "packed")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=DEVICES, default="cpu")
    parser.add_argument("--threads", type=positive_int, help="CPU threads (default: torch's)")
    parser.add_argument("--repeats", type=positive_int, default=9, help="rounds (default 9)")
    args = parser.parse_args(argv)

    try:
        device = find_device(args.device)
    except ArgumentError as error:
        parser.exit(2, f"{parser.prog}: error: {error}\n")
    console = report_console()
    with thread_count(args.threads), report_console(stderr=True).status("measuring") as status:
        table, busy = storage_table(args.repeats, device, status.update)
    console.print(device.name())
    console.print(table)
    if warning := load_warning(busy):
        console.print(warning, style="yellow")
    return 0


def storage_table(
    rounds: int, device: Device, progress: Callable[[str], object]
) -> tuple[Table, float]:
    """Milliseconds of both settings and which is faster; the largest load by other processes."""
    columns = ("B x O x I", "bits MiB", "p", *(f"{name} ms" for name in STORAGES))
    title = "mask_storage, fp32, forward + backward"
    table = Table(*columns, "packed / regenerate", "faster", title=title)
    busy = 0.0
    for shape in SHAPES:
        for p in PS:
            progress(f"{shape}, p={p}")
            measured = _measure(shape, p, rounds, device)
            busy = max(busy, measured.other_busy_cores)
            table.add_row(*_cells(shape, p, measured))
        table.add_section()
    return table, busy


def _measure(shape: tuple[int, int, int], p: float, rounds: int, device: Device) -> Measurements:
    calls = Calls(Problem(*shape), device.kind)
    ops: dict[str, Call] = {
        name: partial(dropconnect_linear, p=p, mask_storage=name) for name in STORAGES
    }
    subjects = [Subject(name, partial(calls, op)) for name, op in ops.items()]
    return measure_interleaved(
        subjects, ("total",), rounds=rounds, memory_phase="total", device=device, replayed=()
    )


def _cells(shape: tuple[int, int, int], p: float, measured: Measurements) -> list[str]:
    regenerate, packed = (measured.subjects[name].seconds["total"] for name in STORAGES)
    share = spread(ratio(packed, regenerate))
    assert share is not None
    batch, outs, ins = shape
    return [
        f"{batch} x {outs} x {ins}",
        f"{batch * outs * ins / 8 / 2**20:.2f}",
        f"{p:g}",
        *(f"{1e3 * found['median']:.2f}" for found in map(spread, (regenerate, packed)) if found),
        "{median:.2f} ({p20:.2f} - {p80:.2f})".format_map(share),
        "packed" if share["median"] < 1 else "regenerate",
    ]


if __name__ == "__main__":
    sys.exit(main())
