"""Does the transformer epilogue meet its goals here? Run: python bench/bias_act_dropout_add.py

Measures residual + dropout(gelu(input + bias)) on 8 x 1024 x 3072 (a batch of sequences in GPT's
feed-forward block) in fp32 and bf16, against the same in eager PyTorch and under torch.compile. The
floor is the bytes that must move, three tensors forward (input, residual, output) and three
backward (gradient, input, its gradient), at the rate of a warm `copy_` of one such tensor.
`--threads 1` gives steadier ratios on a machine that is shared. `--save` writes all figures as JSON
and a plot as PNG to bench/results/. Exit status 1 if a goal is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fused_dropout._core.private_torch import without_donated_buffers
from fused_dropout._tools.bench.columns import (
    PEAK,
    Result,
    milliseconds,
    printed,
    shape_text,
    times,
)
from fused_dropout._tools.bench.devices import Device
from fused_dropout._tools.bench.harness import (
    OURS,
    Key,
    Measured,
    Prepare,
    Spread,
    measure_rows,
    ratio,
    relative,
    spread,
)
from fused_dropout._tools.bench.report import Goal, Script, Setup, results_beside, run_script
from fused_dropout.functional import bias_act_dropout_add

SHAPE = (8, 1024, 3072)
P = 0.1
EAGER, COMPILED, COPY = "eager", "compiled eager", "copy_"
# Tensors that a phase must read or write; copy_ moves two.
TENSORS = {"forward": 3, "backward": 3, "total": 6}
PHASES = tuple(TENSORS)

Layer = Callable[[Tensor, Tensor, Tensor], Tensor]  # input, bias, residual


def eager(input: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """What is fused, in PyTorch."""
    return F.dropout(F.gelu(input + bias), P) + residual


def fused(input: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """The same by this package."""
    return bias_act_dropout_add(input, bias, residual, P, "gelu")


def measure(
    shape: tuple[int, ...], dtype: str, *, compiled: bool, device: Device, **options: Any
) -> dict[str, Any]:
    """One shape and dtype."""
    layers: dict[str, Layer] = {OURS: fused, EAGER: eager}
    if compiled:
        torch.compiler.reset()
        layers[COMPILED] = torch.compile(eager, dynamic=False)
    prepare = Calls(shape, dtype, device.kind)
    calls: dict[Key, Prepare] = {
        (name, P): partial(prepare.of_layer, layer) for name, layer in layers.items()
    }
    calls[COPY, None] = prepare.of_copy
    with without_donated_buffers():
        result = measure_rows(
            calls, PHASES, _figures, device=device, may_fail=[COMPILED], **options
        )
    return {"shape": list(shape), "dtype": dtype, **result}


class Calls:
    """The same tensors for every subject; called with a phase, returns what to time."""

    def __init__(self, shape: tuple[int, ...], dtype: str, device: str) -> None:
        draw = torch.Generator().manual_seed(0)

        def normal(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=draw).to(device, getattr(torch, dtype))

        self.input, self.bias, self.residual = normal(*shape), normal(shape[-1]), normal(*shape)
        self.grad = normal(*shape)

    def of_layer(self, layer: Layer, phase: str) -> Callable[[], object]:
        leaves = [t.detach().requires_grad_() for t in (self.input, self.bias, self.residual)]
        if phase == "forward":
            return lambda: layer(*leaves)
        if phase == "total":
            return lambda: torch.autograd.grad(layer(*leaves), leaves, self.grad)
        output = layer(*leaves)
        return lambda: torch.autograd.grad(output, leaves, self.grad, retain_graph=True)

    def of_copy(self, phase: str) -> Callable[[], object]:
        target = torch.empty_like(self.input)
        return lambda: target.copy_(self.input)


def _figures(key: Key, measured: Mapping[Key, Measured]) -> dict[str, Any]:
    own, copy = measured[key], measured[COPY, None]

    def speedup_over(name: str) -> dict[str, Spread | None] | None:
        peer = measured.get((name, P))
        if key[0] in (name, COPY) or peer is None or peer.note or own.note:
            return None
        return relative(peer, own, PHASES)

    def times_floor(phase: str) -> Spread | None:
        if key[0] == COPY or phase not in own.seconds:
            return None
        shares = ratio(own.seconds[phase], copy.seconds[phase])
        return spread([share and share * 2 / TENSORS[phase] for share in shares])

    return {
        "speedup_over_eager": speedup_over(EAGER),
        "speedup_over_compiled": speedup_over(COMPILED),
        "times_floor": {phase: times_floor(phase) for phase in PHASES},
    }


def result_title(result: Result) -> str:
    """What a table or a plot is about."""
    return f"residual + dropout(gelu(input + bias), {P:g}), {shape_text(result)}"


COLUMNS = [
    *map(milliseconds, PHASES),
    PEAK,
    *(times(f"{phase}\ntimes floor", "times_floor", phase, separator="\n") for phase in PHASES),
    times("total faster\nthan eager", "speedup_over_eager", separator="\n"),
    times("total faster\nthan compiled", "speedup_over_compiled", separator="\n"),
]
print_result = printed(result_title, COLUMNS)
MEASUREMENTS = [partial(measure, SHAPE, dtype) for dtype in ("float32", "bfloat16")]
SETUPS = {
    "cpu": Setup(
        "bias-act-dropout-add-",
        MEASUREMENTS,
        [Goal(0, P, "speedup_over_eager", at_least=6)],
    ),
    # 1.087: 92 % of the rate of copy_.
    "cuda": Setup(
        "bias-act-dropout-add-",
        MEASUREMENTS,
        [
            Goal(number, P, "times_floor", at_most=1.087, phase=phase)
            for number in range(2)
            for phase in ("forward", "backward")
        ],
    ),
}


SCRIPT = Script(__doc__, SETUPS, results_beside(__file__), print_result, shape_text, result_title)
main = partial(run_script, SCRIPT)

if __name__ == "__main__":
    sys.exit(main())
