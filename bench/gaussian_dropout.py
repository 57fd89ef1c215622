"""Are the ops on continuous noise faster than eager PyTorch? Run: python bench/gaussian_dropout.py

Measures Gaussian dropout, Gaussian noise of given mean and variance, and concrete dropout with a
learned p on 16.7 M elements in fp32 and bf16. `eager` is the plain composition of torch's
operators. `clone` moves the bytes of one input and one output. `--save` writes all figures as JSON
and a plot as PNG to bench/results/. Exit status 1 if a goal is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fused_dropout._tools.bench.columns import PEAK, Result, milliseconds, printed, times
from fused_dropout._tools.bench.devices import Device
from fused_dropout._tools.bench.harness import OURS, Key, Measured, Prepare, measure_rows, relative
from fused_dropout._tools.bench.report import Goal, Script, Setup, results_beside, run_script
from fused_dropout.functional import concrete_dropout, gaussian_dropout, gaussian_noise

PHASES = ("forward", "total")  # total: and the gradients
EAGER, CLONE = "eager", "clone"
ELEMENTS = 1 << 24
DTYPES = ("float32", "bfloat16")
TEMPERATURE = 0.1

Layer = Callable[[Tensor, Tensor], Tensor]  # input, and the op's second differentiable operand


def eager_gaussian_dropout(input: Tensor, _: Tensor) -> Tensor:
    return input * (1 + torch.randn_like(input))  # p = 0.5


def eager_gaussian_noise(mean: Tensor, variance: Tensor) -> Tensor:
    return mean + (variance + 1e-8).sqrt() * torch.randn_like(mean)


def eager_concrete_dropout(input: Tensor, logit_p: Tensor) -> Tensor:
    """As the code in the appendix of Gal, Hron and Kendall 2017 has it, but for its eps in p."""
    eps = 1e-7
    u = torch.rand_like(input)
    p = torch.sigmoid(logit_p)
    logit_z = torch.log(p) - torch.log(1 - p) + torch.log(u + eps) - torch.log(1 - u + eps)
    return input * (1 - torch.sigmoid(logit_z / TEMPERATURE)) / (1 - p)


def _fused_gaussian_dropout(input: Tensor, _: Tensor) -> Tensor:
    return gaussian_dropout(input)


def _fused_concrete_dropout(input: Tensor, logit_p: Tensor) -> Tensor:
    return concrete_dropout(input, logit_p, TEMPERATURE)


OPS: dict[str, tuple[Layer, Layer]] = {
    "gaussian_dropout": (_fused_gaussian_dropout, eager_gaussian_dropout),
    "gaussian_noise": (gaussian_noise, eager_gaussian_noise),
    "concrete_dropout": (_fused_concrete_dropout, eager_concrete_dropout),
}


def measure(
    op: str, dtype: str, elements: int = ELEMENTS, *, device: Device, **options: Any
) -> dict[str, Any]:
    """One op and dtype; the peers here are not compiled."""
    ours, eager = OPS[op]
    prepare = _Calls(op, dtype, elements, device.kind)
    layers = {OURS: ours, EAGER: eager, CLONE: lambda input, _: input.clone()}
    calls: dict[Key, Prepare] = {
        (name, None): partial(prepare, layer) for name, layer in layers.items()
    }
    result = measure_rows(calls, PHASES, _figures, device=device, **options)
    return {"op": op, "elements": elements, "dtype": dtype, **result}


class _Calls:
    """The same inputs for every subject; called with a layer and a phase, returns what to time."""

    def __init__(self, op: str, dtype: str, elements: int, device: str) -> None:
        draw = torch.Generator().manual_seed(0)

        def normal() -> Tensor:
            return torch.randn(elements, generator=draw).to(device, getattr(torch, dtype))

        self.input, self.grad = normal(), normal()
        self.second = normal().square() if op == "gaussian_noise" else self.input.new_tensor(-2.0)

    def __call__(self, layer: Layer, phase: str) -> Callable[[], object]:
        operands = [tensor.detach().requires_grad_() for tensor in (self.input, self.second)]
        if phase == "forward":
            return lambda: layer(*operands)
        return lambda: torch.autograd.grad(layer(*operands), operands, self.grad, allow_unused=True)


def _figures(key: Key, measured: Mapping[Key, Measured]) -> dict[str, Any]:
    own, eager, clone = (measured[name, None] for name in (key[0], EAGER, CLONE))
    return {
        "speedup_over_eager": relative(eager, own, PHASES),
        "times_clone": relative(own, clone, ["forward"]),
    }


def shape_text(result: Result) -> str:
    """Which measurement a goal is about."""
    return "{op} {elements} {dtype}".format_map(result)


def result_title(result: Result) -> str:
    """What a table or a plot is about."""
    return "{op}, {elements} elements, {dtype}".format_map(result)


COLUMNS = [
    *map(milliseconds, PHASES),
    *(times(f"faster than\neager, {phase}", "speedup_over_eager", phase) for phase in PHASES),
    times("forward\ntimes clone", "times_clone", "forward"),
    PEAK,
]
print_result = printed(result_title, COLUMNS)
CASES = [(op, dtype) for op in OPS for dtype in DTYPES]
MEASUREMENTS = [partial(measure, *case) for case in CASES]
# On the CPU torch draws normals on one core, and its concrete dropout takes a dozen passes. A GPU
# is limited by the arithmetic of the noise, which the eager forms need as well.
AT_LEAST = {
    "cpu": {"gaussian_dropout": 4, "gaussian_noise": 4, "concrete_dropout": 8},
    "cuda": {"gaussian_dropout": 1, "gaussian_noise": 1, "concrete_dropout": 2},
}


def goals(device: str) -> list[Goal]:
    """One for each case, of the forward and backward pass together."""
    return [
        Goal(number, None, "speedup_over_eager", at_least=AT_LEAST[device][op])
        for number, (op, _) in enumerate(CASES)
    ]


SETUPS = {device: Setup("gaussian-dropout-", MEASUREMENTS, goals(device)) for device in AT_LEAST}


SCRIPT = Script(__doc__, SETUPS, results_beside(__file__), print_result, shape_text, result_title)
main = partial(run_script, SCRIPT)

if __name__ == "__main__":
    sys.exit(main())
