"""Do drop_path and the fused residual sum meet their goals here? Run: python bench/drop_path.py

Measures the tokens of a ViT-B (128 x 197 x 768) and a map of a ResNet (32 x 64 x 56 x 56) in fp32
and bf16. `eager` is how timm and torchvision do it: a mask of one number per sample, a product, and
for the residual block a sum. The floor is `clone` of the same tensor, which moves the same bytes.
`--save` writes all figures as JSON and a plot as PNG to bench/results/. Exit status 1 if a goal is
missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from fused_dropout._tools.bench.devices import Device
from fused_dropout._tools.bench.harness import (
    OURS,
    Measured,
    Spread,
    Subject,
    load_warning,
    measure_interleaved,
    ratio,
    row_label,
    spread,
)
from fused_dropout._tools.bench.report import Goal, Script, Setup, run_script
from fused_dropout.functional import drop_path, drop_path_add

RESULTS = Path(__file__).parent / "results"
PHASES = ("forward", "total")  # total: and the gradients
PS = (0.1, 0.5)
EAGER, CLONE = "eager", "clone"
SHAPES = ((128, 197, 768), (32, 64, 56, 56))
DTYPES = ("float32", "bfloat16")

Layer = Callable[[Tensor, Tensor], Tensor]  # x, branch


def eager_drop_path(branch: Tensor, p: float) -> Tensor:
    """A mask of one number per sample, as timm and torchvision write it."""
    keep = branch.new_empty(len(branch), *[1] * (branch.dim() - 1)).bernoulli_(1 - p).div_(1 - p)
    return branch * keep


def layers(summed: bool) -> dict[tuple[str, float | None], Layer]:
    """What is measured, by name and p."""
    fused, eager = (_fused_sum, _eager_sum) if summed else (_fused, _eager)
    found: dict[tuple[str, float | None], Layer] = {(OURS, p): partial(fused, p=p) for p in PS}
    found[EAGER, PS[0]] = partial(eager, p=PS[0])
    return found


def _fused(x: Tensor, branch: Tensor, *, p: float) -> Tensor:
    return drop_path(branch, p, True)


def _eager(x: Tensor, branch: Tensor, *, p: float) -> Tensor:
    return eager_drop_path(branch, p)


def _fused_sum(x: Tensor, branch: Tensor, *, p: float) -> Tensor:
    return drop_path_add(x, branch, p, True)


def _eager_sum(x: Tensor, branch: Tensor, *, p: float) -> Tensor:
    return x + eager_drop_path(branch, p)


def measure(
    shape: tuple[int, ...],
    dtype: str,
    summed: bool,
    *,
    rounds: int,
    compiled: bool,
    device: Device,
    progress: Callable[[str], object],
) -> dict[str, Any]:
    """One shape and form; `compiled` changes nothing, the peers here are not compiled."""
    calls = {**layers(summed), (CLONE, None): lambda _, branch: branch.clone()}
    prepare = _Calls(shape, dtype, device.kind, summed)
    subjects = [Subject(row_label(*key), partial(prepare, call)) for key, call in calls.items()]
    measured = measure_interleaved(
        subjects, PHASES, rounds=rounds, memory_phase="total", device=device, progress=progress
    )
    return {
        "form": "x + drop_path(branch)" if summed else "drop_path(branch)",
        "shape": list(shape),
        "dtype": dtype,
        "device": device.kind,
        "rounds": rounds,
        "other_busy_cores": round(measured.other_busy_cores, 2),
        "rows": [_row(name, p, measured.subjects) for name, p in calls],
    }


class _Calls:
    """The same inputs for every subject; called with a layer and a phase, returns what to time."""

    def __init__(self, shape: tuple[int, ...], dtype: str, device: str, summed: bool) -> None:
        draw = torch.Generator().manual_seed(0)
        self.tensors = [
            torch.randn(shape, generator=draw).to(device, getattr(torch, dtype)) for _ in range(3)
        ]
        self.summed = summed

    def __call__(self, layer: Layer, phase: str) -> Callable[[], object]:
        x, branch, grad = (tensor.detach() for tensor in self.tensors)
        branch.requires_grad_()
        if phase == "forward":
            return lambda: layer(x, branch)
        wanted = [x.requires_grad_(), branch] if self.summed else [branch]
        return lambda: torch.autograd.grad(layer(x, branch), wanted, grad, allow_unused=True)


def _row(name: str, p: float | None, subjects: Mapping[str, Measured]) -> dict[str, Any]:
    own = subjects[row_label(name, p)]
    eager, clone = subjects[row_label(EAGER, PS[0])], subjects[CLONE]
    return {
        "name": name,
        "p": p,
        **own.figures(),
        "times_clone": {"forward": spread(ratio(own.seconds["forward"], clone.seconds["forward"]))},
        "speedup_over_eager": {
            phase: spread(ratio(eager.seconds[phase], own.seconds[phase])) for phase in PHASES
        },
    }


def print_result(result: Mapping[str, Any], console: Console) -> None:
    """A table of one shape and form, and a warning if the machine was busy."""
    table = Table("", title=result_title(result))
    headings = [f"{phase}\nms" for phase in PHASES] + ["forward\ntimes clone"]
    for heading in headings + [f"faster than\neager, {phase}" for phase in PHASES]:
        table.add_column(heading, justify="right")
    for row in result["rows"]:
        table.add_row(
            row_label(row["name"], row["p"]),
            *[f"{1e3 * row['seconds'][phase]['median']:.3g}" for phase in PHASES],
            _shown(row["times_clone"]["forward"]),
            *[_shown(row["speedup_over_eager"][phase]) for phase in PHASES],
        )
    console.print(table)
    if warning := load_warning(result["other_busy_cores"]):
        console.print(warning, style="yellow")


def _shown(found: Spread | None) -> str:
    if found is None:
        return "-"
    return "{median:.2f}x ({p20:.2f}-{p80:.2f})".format_map(found)


def shape_text(result: Mapping[str, Any]) -> str:
    """Which measurement a goal is about."""
    return f"{result['form']} {'x'.join(map(str, result['shape']))} {result['dtype']}"


def result_title(result: Mapping[str, Any]) -> str:
    """What a table or a plot is about."""
    return f"Stochastic depth, {shape_text(result)}"


CASES = [(shape, dtype, summed) for summed in (False, True) for shape in SHAPES for dtype in DTYPES]
GOALS = [
    # One pass moves 3 tensors where two passes move 5; half of that gain is asked for.
    Goal(number, p, "speedup_over_eager", at_least=1.3)
    if summed
    else Goal(number, p, "times_clone", at_most=1.3, phase="forward")
    for number, (_, _, summed) in enumerate(CASES)
    for p in PS
]
MEASUREMENTS = [partial(measure, *case) for case in CASES]
SETUPS = {
    "cpu": Setup("drop-path-", MEASUREMENTS, GOALS),
    "cuda": Setup("drop-path-", MEASUREMENTS),
}


def main(argv: Sequence[str] | None = None) -> int:
    script = Script(__doc__, SETUPS, RESULTS, print_result, shape_text, result_title)
    return run_script(script, argv)


if __name__ == "__main__":
    sys.exit(main())
