"""Does skipping the dropped samples' work pay here? Run: python bench/drop_path_skip.py

Measures a training step (forward, and all gradients) of two residual blocks at drop rates of 0.4
and 0.1: a transformer block (64 images of 7 x 7 tokens, width 256, attention and a feed-forward
layer in a branch each) and a ConvNeXt block (32 maps of 96 x 28 x 28, channels last, one branch).
`zeroing` is how timm and torchvision write it: all samples run, a mask of one number per sample, a
product and a sum; `fused zeroing` is `drop_path_add`. `dense` is the block without dropping. The
goals say that a step takes at least 25 % less time than zeroing at 0.4, that is 1.33x faster, and
no more at 0.1. `--save` writes all figures as JSON and a plot as PNG to bench/results/. Exit status
1 if a goal is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from fused_dropout import functional
from fused_dropout._tools.bench import columns
from fused_dropout._tools.bench.columns import PEAK, Result, milliseconds, printed, times
from fused_dropout._tools.bench.devices import Device
from fused_dropout._tools.bench.harness import OURS, Key, Measured, Prepare, measure_rows, relative
from fused_dropout._tools.bench.op import DENSE, PHASES, BenchOp, Calls, Layer, Shape
from fused_dropout._tools.bench.ops.drop_path import eager_drop_path
from fused_dropout._tools.bench.ops.drop_path_skip import ZEROING
from fused_dropout._tools.bench.report import Goal, Script, Setup, results_beside, run_script

PS = (0.4, 0.1)
FUSED_ZEROING = "fused zeroing"
Branch = Callable[[Tensor], Tensor]
AddBranch = Callable[[Tensor, Branch], Tensor]  # x + what becomes of the branch


def add_branch(name: str, p: float) -> AddBranch:
    """How a block adds a branch."""
    ways: dict[str, AddBranch] = {
        OURS: lambda x, f: functional.drop_path_skip(x, f, p, True, residual=x),
        ZEROING: lambda x, f: x + eager_drop_path(f(x), p),
        FUSED_ZEROING: lambda x, f: functional.drop_path_add(x, f(x), p, True),
        DENSE: lambda x, f: x + f(x),
    }
    return ways[name]


class Transformer(nn.Module):
    """A block of a ViT, with both of its branches."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape[-1]
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.layers = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def attend(self, x: Tensor) -> Tensor:
        of_head = min(64, x.shape[-1])
        heads = self.qkv(self.norms[0](x)).unflatten(-1, (3, -1, of_head)).permute(2, 0, 3, 1, 4)
        found = nn.functional.scaled_dot_product_attention(*heads.unbind())
        return self.out(found.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, add: AddBranch) -> Tensor:
        x = add(x, self.attend)
        return add(x, lambda x: self.layers(self.norms[1](x)))


class ConvNeXt(nn.Module):
    """A block of a ConvNeXt."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape[1]
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.layers = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def branch(self, x: Tensor) -> Tensor:
        return self.layers(self.depthwise(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def forward(self, x: Tensor, add: AddBranch) -> Tensor:
        return add(x, self.branch)


BLOCKS: dict[str, tuple[Callable[[Shape], nn.Module], Shape, str]] = {
    "transformer block": (Transformer, (64, 49, 256), "contiguous"),
    "ConvNeXt block": (ConvNeXt, (32, 96, 28, 28), "channels_last"),
}


def built(name: str, shape: Shape) -> nn.Module:
    """The block; the same parameters every time."""
    build = BLOCKS[name][0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(shape)


def layer_of(block: nn.Module, add: AddBranch) -> Layer:
    """The block as a function of x and its parameters, which then all get gradients."""
    names = [name for name, _ in block.named_parameters()]
    return lambda x, *parameters: functional_call(
        block, dict(zip(names, parameters, strict=True)), (x, add)
    )


def measure(
    name: str, shape: Shape, dtype: str = "float32", *, device: Device, **options: Any
) -> dict[str, Any]:
    """One block."""
    block, memory_format = built(name, shape), BLOCKS[name][2]
    op = BenchOp(
        "drop_path_skip", lambda p: layer_of(block, add_branch(OURS, p)), {}, shape,
        lambda elements: shape,
        operands=lambda shape, draw: [
            torch.randn(shape, generator=draw), *(each.detach() for each in block.parameters())
        ],
    )  # fmt: skip
    prepare = Calls(op, shape, dtype, device.kind, memory_format).of_layer
    keys: list[Key] = [(DENSE, None)]
    keys += [(way, p) for p in PS for way in (OURS, ZEROING, FUSED_ZEROING)]
    calls: dict[Key, Prepare] = {
        (way, p): partial(prepare, layer_of(block, add_branch(way, p or 0.0))) for way, p in keys
    }

    def figures(key: Key, measured: Mapping[Key, Measured]) -> dict[str, Any]:
        way, p = key
        found = {"times_dense": relative(measured[key], measured[DENSE, None], PHASES)}
        if way == OURS:
            found["speedup_over_zeroing"] = relative(measured[ZEROING, p], measured[key], PHASES)
        return found

    result = measure_rows(calls, PHASES, figures, device=device, **options)
    return {"what": name, "shape": list(shape), "dtype": dtype, **result}


def shape_text(result: Result) -> str:
    """Which measurement a goal is about."""
    return f"{result['what']} {columns.shape_text(result)}"


def result_title(result: Result) -> str:
    """What a table or a plot is about."""
    return f"Stochastic depth that skips, {shape_text(result)}"


COLUMNS = [
    *map(milliseconds, PHASES),
    times("total\ntimes dense", "times_dense"),
    *(times(f"faster than\nzeroing, {phase}", "speedup_over_zeroing", phase) for phase in PHASES),
    PEAK,
]
print_result = printed(result_title, COLUMNS)
MEASUREMENTS = [partial(measure, name, shape) for name, (_, shape, _) in BLOCKS.items()]
GOALS = [
    Goal(number, p, "speedup_over_zeroing", at_least=at_least)
    for number in range(len(BLOCKS))
    for p, at_least in zip(PS, (1 / 0.75, 1.0), strict=True)
]
SETUPS = {
    "cpu": Setup("drop-path-skip-", MEASUREMENTS, GOALS),
    "cuda": Setup("drop-path-skip-", MEASUREMENTS),
}

SCRIPT = Script(__doc__, SETUPS, results_beside(__file__), print_result, shape_text, result_title)
main = partial(run_script, SCRIPT)

if __name__ == "__main__":
    sys.exit(main())
