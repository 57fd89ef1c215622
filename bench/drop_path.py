"""Do drop_path and the fused residual sum meet their goals here? Run: python bench/drop_path.py

Measures the tokens of a ViT-B (128 x 197 x 768) and a map of a ResNet (32 x 64 x 56 x 56) in fp32
and bf16. `eager` is how timm and torchvision do it: a mask of one number per sample, a product, and
for the residual block a sum. The floor is `clone` of the same tensor, which moves the same bytes.
`--save` writes all figures as JSON and a plot as PNG to bench/results/. Exit status 1 if a goal is
missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fused_dropout._tools.bench import columns
from fused_dropout._tools.bench.columns import Result, milliseconds, printed, times
from fused_dropout._tools.bench.devices import Device
from fused_dropout._tools.bench.harness import OURS, Key, Measured, measure_rows, relative
from fused_dropout._tools.bench.report import Goal, Script, Setup, results_beside, run_script
from fused_dropout.functional import drop_path, drop_path_add

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
    shape: tuple[int, ...], dtype: str, summed: bool, *, device: Device, **options: Any
) -> dict[str, Any]:
    """One shape and form; the peers here are not compiled."""
    prepare = _Calls(shape, dtype, device.kind, summed)
    subjects = {**layers(summed), (CLONE, None): lambda _, branch: branch.clone()}
    calls = {key: partial(prepare, layer) for key, layer in subjects.items()}
    return {
        "form": "x + drop_path(branch)" if summed else "drop_path(branch)",
        "shape": list(shape),
        "dtype": dtype,
        **measure_rows(calls, PHASES, _figures, device=device, **options),
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


def _figures(key: Key, measured: Mapping[Key, Measured]) -> dict[str, Any]:
    own = measured[key]
    return {
        "times_clone": relative(own, measured[CLONE, None], ["forward"]),
        "speedup_over_eager": relative(measured[EAGER, PS[0]], own, PHASES),
    }


def shape_text(result: Result) -> str:
    """Which measurement a goal is about."""
    return f"{result['form']} {columns.shape_text(result)}"


def result_title(result: Result) -> str:
    """What a table or a plot is about."""
    return f"Stochastic depth, {shape_text(result)}"


COLUMNS = [
    *map(milliseconds, PHASES),
    times("forward\ntimes clone", "times_clone", "forward"),
    *(times(f"faster than\neager, {phase}", "speedup_over_eager", phase) for phase in PHASES),
]
print_result = printed(result_title, COLUMNS)
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


SCRIPT = Script(__doc__, SETUPS, results_beside(__file__), print_result, shape_text, result_title)
main = partial(run_script, SCRIPT)

if __name__ == "__main__":
    sys.exit(main())
