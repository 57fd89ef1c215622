"""Does dropout_linear meet its goals here? Run: python bench/dropout_linear.py

Measures a block of LoRA adapters, x of 8 x 1024 x 2048 in fp32: a frozen 2048 x 2048 layer and
three adapters of rank 16 on the same x, whose outputs are added, forward and the gradients of x and
of the adapters. `dense` is the block without dropout (p = 0), the floor: ours may take 1.15 times
as long and 1 % more memory at its peak. `eager` is `F.linear(F.dropout(x, p), A)`, as adapters have
it, which keeps a dropped copy of x and a mask for each. At most 7 rounds: one takes seconds.
`--save` writes all figures as JSON and a plot as PNG to bench/results/. Exit status 1 if a goal is
missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from fused_dropout._tools.bench.columns import PEAK, Column, Result, milliseconds, printed, times
from fused_dropout._tools.bench.devices import Device
from fused_dropout._tools.bench.harness import OURS, Key, Measured, Prepare, measure_rows, relative
from fused_dropout._tools.bench.op import DENSE, FORWARD, PHASES, Layer
from fused_dropout._tools.bench.ops.dropout_linear import EAGER, OP, P
from fused_dropout._tools.bench.report import Goal, Script, Setup, results_beside, run_script

MOST_ROUNDS = 7


class LoraBlock:
    """The operands of every subject: x, a frozen weight, and the two matrices of the adapters."""

    def __init__(self, shape: tuple[int, ...], rank: int, adapters: int, device: str) -> None:
        draw = torch.Generator().manual_seed(0)
        features = shape[-1]

        def normals(*sizes: int, scale: float = 1.0) -> torch.Tensor:
            return (scale * torch.randn(*sizes, generator=draw)).to(device)

        self.input = normals(*shape)
        self.base = normals(features, features, scale=features**-0.5)
        self.down = [normals(rank, features, scale=features**-0.5) for _ in range(adapters)]
        self.up = [normals(features, rank, scale=rank**-0.5) for _ in range(adapters)]
        self.grad = normals(*shape)

    def of_layer(self, down_layer: Layer, phase: str) -> Callable[[], object]:
        """The forward pass, or both; `down_layer(x, A)` is an adapter's first product."""
        recorded = phase != FORWARD
        leaves = [t.detach().requires_grad_(recorded) for t in (self.input, *self.down, *self.up)]
        x, *matrices = leaves
        count = len(self.down)

        def forward() -> torch.Tensor:
            output = F.linear(x, self.base)
            for down, up in zip(matrices[:count], matrices[count:], strict=True):
                output = output + F.linear(down_layer(x, down), up)
            return output

        if not recorded:
            return forward
        return lambda: torch.autograd.grad(forward(), leaves, self.grad)


def measure(
    shape: tuple[int, ...], rank: int = 16, adapters: int = 3,
    *, rounds: int, device: Device, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """One shape of x, in fp32."""
    block = LoraBlock(shape, rank, adapters, device.kind)
    calls: dict[Key, Prepare] = {
        (DENSE, None): partial(block.of_layer, F.linear),
        (OURS, P): partial(block.of_layer, OP.ours(P)),
        (EAGER, P): partial(block.of_layer, OP.peers[EAGER](P)),
    }
    rounds = min(rounds, MOST_ROUNDS)
    result = measure_rows(calls, PHASES, _figures, rounds=rounds, device=device, **options)
    return {"shape": list(shape), "rank": rank, "adapters": adapters, **result}


def _figures(key: Key, measured: Mapping[Key, Measured]) -> dict[str, Any]:
    own, dense, eager = measured[key], measured[DENSE, None], measured[EAGER, P]
    peak, dense_peak = own.peak_extra_bytes, dense.peak_extra_bytes
    return {
        "times_dense": relative(own, dense, PHASES),
        "peak_times_dense": peak / dense_peak if peak is not None and dense_peak else None,
        "speedup_over_eager": relative(eager, own, PHASES),
    }


def shape_text(result: Result) -> str:
    """Which measurement a goal is about."""
    return f"{' x '.join(map(str, result['shape']))}, rank {result['rank']}"


def result_title(result: Result) -> str:
    """What a table or a plot is about."""
    return f"{result['adapters']} LoRA adapters beside a dense layer, {shape_text(result)}, float32"


def _peak_ratio(row: Mapping[str, Any]) -> str:
    found = row["peak_times_dense"]
    return "-" if found is None else f"{found:.2f}x"


COLUMNS = [
    *map(milliseconds, PHASES),
    times("total\ntimes dense", "times_dense"),
    times("total faster\nthan eager", "speedup_over_eager"),
    PEAK,
    Column("peak\ntimes dense", _peak_ratio),
]
print_result = printed(result_title, COLUMNS)
MEASUREMENTS = [partial(measure, (8, 1024, 2048))]
MEMORY = Goal(0, P, "peak_times_dense", at_most=1.01)
FAST = [
    Goal(0, P, "times_dense", at_most=1.15),
    Goal(0, P, "speedup_over_eager", at_least=1),
]
SETUPS = {
    "cpu": Setup("dropout-linear-", MEASUREMENTS, [MEMORY, *FAST]),
    "cuda": Setup("dropout-linear-", MEASUREMENTS, [MEMORY]),
}

SCRIPT = Script(__doc__, SETUPS, results_beside(__file__), print_result, shape_text, result_title)
main = partial(run_script, SCRIPT)

if __name__ == "__main__":
    sys.exit(main())
