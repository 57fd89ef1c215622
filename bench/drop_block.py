"""Does DropBlock meet its goals here? Run: python bench/drop_block.py

Measures a map of a ResNet (32 x 64 x 56 x 56, fp32, blocks of 7, p = 0.1), with blocks of each
channel's own, as torchvision draws them, and with the same for all channels, as timm does. The
forms of both are written out here, and measured themselves where they are installed. Then the rates
at which elements are really dropped, for maps of 7 to 56. `--save` writes all figures as JSON and a
plot as PNG to bench/results/. Exit status 1 if a goal is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fused_dropout import make_rng_state
from fused_dropout._core import extension
from fused_dropout._core.drop_block_gamma import exact_gamma, paper_gamma
from fused_dropout._tools.bench.columns import (
    PEAK,
    Result,
    milliseconds,
    print_remarks,
    result_table,
    times,
)
from fused_dropout._tools.bench.devices import Device
from fused_dropout._tools.bench.harness import OURS, Key, Measured, measure_rows, relative
from fused_dropout._tools.bench.op import PHASES, Calls, LayerAt
from fused_dropout._tools.bench.ops.drop_block import (
    BLOCK,
    OWN,
    OWN_FORM,
    SHAPE,
    SHARED,
    SHARED_FORM,
    TIMM,
    TORCHVISION,
    P,
    form_of_timm,
)
from fused_dropout._tools.bench.report import Goal, Script, Setup, results_beside, run_script

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

CLONE = "clone"
RATE_SIZES = (7, 14, 28, 56)
RATE_ELEMENTS = 180_000_000  # a standard deviation of 0.17 % of the rate

COLUMNS = [
    *map(milliseconds, PHASES),
    PEAK,
    times("faster than\ntorchvision's,\nforward", "faster_than_torchvision's_form", "forward"),
    times("\n\ntotal", "faster_than_torchvision's_form"),
    times("faster than\ntimm's,\nforward", "faster_than_timm's_form", "forward"),
    times("\n\ntotal", "faster_than_timm's_form"),
    times("\ntimes clone,\nforward", "times_clone", "forward"),
]


def layers(share_channels: bool) -> dict[str, LayerAt]:
    """What is measured, by name; from p to the layer."""
    ours = (SHARED if share_channels else OWN).ours
    forms = {OWN_FORM: OWN.peers[OWN_FORM], SHARED_FORM: SHARED.peers[SHARED_FORM]}
    own_code = {"torchvision": TORCHVISION, "timm": TIMM}
    return {OURS: ours, **forms, **own_code, CLONE: lambda p: torch.clone}


def measure(
    share_channels: bool, *, device: Device, shape: Sequence[int] = SHAPE, **options: Any
) -> dict[str, Any]:
    """Times of all layers; the peers here are not compiled."""
    prepare = Calls(OWN, tuple(shape), "float32", device.kind)
    calls = {
        (name, P if name == OURS else None): partial(_prepare, prepare, layer_at)
        for name, layer_at in layers(share_channels).items()
    }
    result = measure_rows(calls, PHASES, _figures, device=device, **options)
    return {
        "blocks": "same in all channels" if share_channels else "own in each channel",
        "shape": list(shape),
        "block_size": BLOCK,
        "dtype": "float32",
        **result,
    }


def _prepare(calls: Calls, layer_at: LayerAt, phase: str) -> Callable[[], object]:
    return calls.of_layer(layer_at(P), phase)


def _figures(key: Key, measured: Mapping[Key, Measured]) -> dict[str, Any]:
    own = measured[key]
    if own.note:
        return {}
    torchvisions, timms, clone = (measured[name, None] for name in (OWN_FORM, SHARED_FORM, CLONE))
    return {
        "faster_than_torchvision's_form": relative(torchvisions, own, PHASES),
        "faster_than_timm's_form": relative(timms, own, PHASES),
        "times_clone": relative(own, clone, PHASES),
    }


def measure_rates(
    *,
    rounds: int,
    compiled: bool,
    device: Device,
    progress: Callable[[str], object],
    elements: int = RATE_ELEMENTS,
) -> dict[str, Any]:
    """The share of elements that masks of many maps drop, for each size of map.

    The peers give the seeds the paper's rate. timm draws seeds outside the map's whole blocks too.
    """
    draws = {
        OURS: partial(_dropped_share, exact_gamma, elements),
        "torchvision": partial(_dropped_share, paper_gamma, elements),
        "timm": partial(_dropped_share_of_timm, elements // 10),  # max pooling takes its time
    }
    rows = []
    for name, draw in draws.items():
        progress(f"rates of dropped elements: {name}")
        rates = {str(size): draw(size, device.kind) for size in RATE_SIZES}
        factors = [max(rate / P, P / rate) for rate in rates.values()]
        row = {"name": name, "p": P, "note": "", "rate": rates, "off_the_wanted_rate": max(factors)}
        rows.append(row)
    return {"blocks": "rates", "block_size": BLOCK, "elements": elements, "rows": rows}


def _dropped_share(solve: Callable[..., float], elements: int, size: int, device: str) -> float:
    maps = torch.empty((), device=device).expand(elements // size**2, 1, size, size)
    block = (BLOCK, BLOCK)
    gamma = solve(P, (size, size), block)
    draw = extension.operators().drop_block_mask
    # The scale is the number of elements by that of the kept ones.
    _, scale = draw(maps, make_rng_state(0, device=device), block, gamma, False, 1, 0.0)
    return 1 - 1 / float(scale)


def _dropped_share_of_timm(elements: int, size: int, device: str) -> float:
    maps = torch.ones((), device=device).expand(elements // size**2, 1, size, size)
    return float((form_of_timm(maps, P, BLOCK) == 0).double().mean())


def print_result(result: Result, console: Console) -> None:
    """A table of times or of rates."""
    if result["blocks"] == "rates":
        console.print(_rate_table(result))
        return
    console.print(result_table(result, result_title(result), COLUMNS))
    print_remarks(result, console)


def _rate_table(result: Result) -> Table:
    from rich.table import Table

    table = Table("map", title=result_title(result))
    for row in result["rows"]:
        exact = ', gamma="exact"' if row["name"] == OURS else ""
        table.add_column(row["name"] + exact, justify="right")
    for size in map(str, RATE_SIZES):
        rates = [row["rate"][size] for row in result["rows"]]
        shown = [f"{rate:.5f} ({100 * (rate / P - 1):+.2f} %)" for rate in rates]
        table.add_row(f"{size} x {size}", *shown)
    return table


def shape_text(result: Result) -> str:
    """Which measurement a goal is about."""
    if result["blocks"] == "rates":
        return f"rates, maps of {RATE_SIZES[0]} to {RATE_SIZES[-1]}"
    return f"{'x'.join(map(str, result['shape']))}, blocks {result['blocks']}"


def result_title(result: Result) -> str:
    """What a table or a plot is about."""
    what = f"block {result['block_size']}, p = {P:g}"
    if result["blocks"] == "rates":
        return f"Elements really dropped, {what}"
    return f"DropBlock {shape_text(result)}, {what}"


RATE_GOAL = Goal(2, P, "off_the_wanted_rate", at_most=1.01)
GOALS = [
    Goal(0, P, "faster_than_torchvision's_form", at_least=50, phase="forward"),
    Goal(0, P, "faster_than_torchvision's_form", at_least=20, phase="total"),
    Goal(1, P, "faster_than_timm's_form", at_least=2, phase="forward"),
    RATE_GOAL,
]
MEASUREMENTS: list[Callable[..., dict[str, Any]]] = [
    partial(measure, False),
    partial(measure, True),
    measure_rates,
]
SETUPS = {
    "cpu": Setup("drop-block-", MEASUREMENTS, GOALS),
    "cuda": Setup("drop-block-", MEASUREMENTS, [RATE_GOAL]),
}


SCRIPT = Script(__doc__, SETUPS, results_beside(__file__), print_result, shape_text, result_title)
main = partial(run_script, SCRIPT)

if __name__ == "__main__":
    sys.exit(main())
