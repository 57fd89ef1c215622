"""Is a step of a converted model any slower than before? Run: python bench/replace.py

Measures forward, and a training step (forward, backward and SGD), of a ViT-tiny for images of 64
pixels, before and after `fused_dropout.replace`: timm's, with dropout and stochastic depth, where
timm is installed, and one of torch.nn's encoder layers. Its tensors are small (16 x 17 x 192), so
that a dropout layer's time is mostly that of a call. Attention weights are dropped by torch's
function in both. `--save` writes all figures as JSON and a plot as PNG to bench/results/. Exit
status 1 if a goal is missed.
"""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import fused_dropout
from fused_dropout._tools.bench.columns import Result, milliseconds, printed, times
from fused_dropout._tools.bench.devices import Device
from fused_dropout._tools.bench.harness import OURS, Key, Measured, Prepare, measure_rows, relative
from fused_dropout._tools.bench.report import Goal, Script, Setup, results_beside, run_script

P = 0.1
BEFORE = "before"
PHASES = ("forward", "total")
PATCH = 16
VIT_TINY = (16, 4, 192, 3, 12)  # batch, patches along a side, width, heads, layers


class VisionTransformer(nn.Module):
    """Of torch.nn's layers: three dropouts in each encoder layer, and one of its own."""

    def __init__(self, patches: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, PATCH, PATCH)
        self.start = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, patches**2 + 1, width))
        self.drop = nn.Dropout(P)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, P, "gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        tokens = torch.cat((self.start.expand(len(images), -1, -1), tokens), 1) + self.position
        logits: Tensor = self.head(self.encoder(self.drop(tokens))[:, 0])
        return logits


def of_torch(patches: int, width: int, heads: int, layers: int) -> nn.Module:
    """The model of torch.nn's layers."""
    return VisionTransformer(patches, width, heads, layers)


def of_timm(patches: int, width: int, heads: int, layers: int) -> nn.Module:
    """timm's model of these sizes."""
    module: Any = importlib.import_module("timm.models.vision_transformer")
    model: nn.Module = module.VisionTransformer(
        patches * PATCH, PATCH, num_classes=10, embed_dim=width, num_heads=heads, depth=layers,
        drop_rate=P, pos_drop_rate=P, proj_drop_rate=P, attn_drop_rate=P, drop_path_rate=P,
    )  # fmt: skip
    return model


def measure(
    make: Callable[..., nn.Module], sizes: tuple[int, ...] = VIT_TINY, *, device: Device,
    compiled: bool, **options: Any,
) -> dict[str, Any]:  # fmt: skip
    """One model; nothing here is compiled."""
    torch.manual_seed(0)
    batch, patches, width, heads, layers = sizes
    model = make(patches, width, heads, layers).to(device.kind)
    images = torch.randn(batch, 3, patches * PATCH, patches * PATCH, device=device.kind)
    converted = fused_dropout.replace(copy.deepcopy(model))
    calls: dict[Key, Prepare] = {
        (BEFORE, P): partial(_call, model, images),
        (OURS, P): partial(_call, converted, images),
    }
    return {
        "model": make.__name__.removeprefix("of_"),
        "sizes": list(sizes),
        "shape": list(images.shape),
        **measure_rows(calls, PHASES, _figures, device=device, **options),
    }


def _call(model: nn.Module, images: Tensor, phase: str) -> Callable[[], object]:
    if phase == "forward":
        return torch.no_grad()(lambda: model(images))
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)

    def step() -> None:
        optimizer.zero_grad()
        model(images).square().mean().backward()
        optimizer.step()

    return step


def _figures(key: Key, measured: Mapping[Key, Measured]) -> dict[str, Any]:
    return {"times_before": relative(measured[key], measured[BEFORE, P], PHASES)}


def shape_text(result: Result) -> str:
    """Which measurement a goal is about."""
    batch, patches, width, _, layers = result["sizes"]
    side = patches * PATCH
    return f"{result['model']} ViT, {layers} x {width}, {batch} images of {side} x {side}"


result_title = shape_text

COLUMNS = [
    *map(milliseconds, PHASES),
    *(times(f"times\nbefore, {phase}", "times_before", phase) for phase in PHASES),
]
print_result = printed(result_title, COLUMNS)
MAKERS = (of_timm, of_torch) if find_spec("timm") else (of_torch,)
MEASUREMENTS = [partial(measure, make) for make in MAKERS]
GOALS = [
    Goal(number, P, "times_before", at_most=1.05, phase="total") for number in range(len(MAKERS))
]
SETUPS = {
    "cpu": Setup("replace-", MEASUREMENTS, GOALS),
    "cuda": Setup("replace-", MEASUREMENTS),
}

SCRIPT = Script(__doc__, SETUPS, results_beside(__file__), print_result, shape_text, result_title)
main = partial(run_script, SCRIPT)

if __name__ == "__main__":
    sys.exit(main())
