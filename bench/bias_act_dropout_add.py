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
from fused_dropout._tools.bench.op import COPY, Calls
from fused_dropout._tools.bench.ops.bias_act_dropout_add import EAGER, MOVED, OP, P
from fused_dropout._tools.bench.report import Goal, Script, Setup, results_beside, run_script

COMPILED = "compiled eager"
PHASES = tuple(MOVED)


def measure(
    shape: tuple[int, ...], dtype: str, *, compiled: bool, device: Device, **options: Any
) -> dict[str, Any]:
    """One shape and dtype."""
    layers = {OURS: OP.ours(P), EAGER: OP.peers[EAGER](P)}
    if compiled:
        torch.compiler.reset()
        layers[COMPILED] = torch.compile(layers[EAGER], dynamic=False)
    prepare = Calls(OP, shape, dtype, device.kind)
    calls: dict[Key, Prepare] = {
        (name, P): partial(prepare.of_layer, layer) for name, layer in layers.items()
    }
    calls[COPY, None] = partial(_copy, prepare)
    with without_donated_buffers():
        result = measure_rows(
            calls, PHASES, _figures, device=device, may_fail=[COMPILED], **options
        )
    return {"shape": list(shape), "dtype": dtype, **result}


def _copy(calls: Calls, phase: str) -> Callable[[], object]:
    """`copy_` of one tensor, warm."""
    source = calls.operands[0]
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


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
        return spread([share and share * 2 / MOVED[phase] for share in shares])

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
MEASUREMENTS = [partial(measure, OP.shape, dtype) for dtype in ("float32", "bfloat16")]
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
