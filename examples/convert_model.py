"""A finished model converted in one line: what was replaced, and that it trains as before.

    python examples/convert_model.py

The model is timm's ViT-tiny for images of 64 pixels, or torchvision's ConvNeXt where timm is not
installed, or a small vision transformer of torch.nn where neither is. fused_dropout.replace makes
its dropout layers those of this package, and the report says which, and what no layer holds. Then
the same weights are trained twice on the same images, before and after: to tell two kinds of noise,
by their colours. The picture shows both losses, and the time of a step; both runs draw masks of
their own, so the curves are alike and not the same. At the end fused_dropout.restore goes back.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import statistics
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

import fused_dropout

CLASSES = 2
BEFORE, AFTER = "before", "after"


class VisionTransformer(nn.Module):
    """Patches of 8 x 8 pixels through torch's encoder layers, for images of 64 x 64."""

    def __init__(self, width: int = 192, depth: int = 4, p: float = 0.1) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.position = nn.Parameter(torch.zeros(1, 64, width))
        self.drop = nn.Dropout(p)
        layer = nn.TransformerEncoderLayer(width, 3, 4 * width, p, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        logits: Tensor = self.head(self.encoder(self.drop(tokens + self.position)).mean(1))
        return logits


def make_model(quick: bool) -> nn.Module:
    """The first of the three that is installed."""
    if importlib.util.find_spec("timm"):
        timm: Any = importlib.import_module("timm")
        settings = {"drop_rate": 0.1, "proj_drop_rate": 0.1, "drop_path_rate": 0.1}
        depth = 2 if quick else 4
        model: nn.Module = timm.create_model(
            "vit_tiny_patch16_224", img_size=64, depth=depth, num_classes=CLASSES, **settings
        )
        return model
    if importlib.util.find_spec("torchvision"):
        models: Any = importlib.import_module("torchvision.models")
        blocks: Any = importlib.import_module("torchvision.models.convnext").CNBlockConfig
        stages = [blocks(48, 96, 2), blocks(96, None, 2)]
        convnext: nn.Module = models.ConvNeXt(
            stages, stochastic_depth_prob=0.2, num_classes=CLASSES
        )
        return convnext
    return VisionTransformer(depth=1 if quick else 4)


def make_batch(size: int) -> tuple[Tensor, Tensor]:
    """Noise in which red is a little brighter, or blue is."""
    labels = torch.randint(CLASSES, (size,))
    images = torch.randn(size, 3, 64, 64)
    images[labels == 0, 0] += 0.1
    images[labels == 1, 2] += 0.1
    return images, labels


def train(
    model: nn.Module, steps: int, batch: int, seed: int, progress: Progress, name: str
) -> tuple[list[float], float]:
    """The losses, and the seconds of a step."""
    generator_of_data = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-4)
    losses, seconds = [], []
    for _ in progress.track(range(steps), description=f"{name:6}"):
        state = torch.get_rng_state()
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator_of_data)))
        images, labels = make_batch(batch)
        torch.set_rng_state(state)  # masks go on where they were
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        losses.append(loss.item())
    return losses, statistics.median(seconds)


def save_picture(losses: dict[str, list[float]], seconds: dict[str, float], path: Path) -> None:
    """Losses on the left, times on the right."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5), width_ratios=(3, 1))
    for name, values in losses.items():
        left.plot(values, label=name)
    left.set(xlabel="step", ylabel="loss", title="The same weights, before and after replace()")
    left.legend()
    right.bar(list(seconds), [1e3 * value for value in seconds.values()], color=["C0", "C1"])
    right.set(ylabel="ms", title="Time of a step")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("build/examples"), metavar="FOLDER")
    parser.add_argument("--quick", action="store_true", help="a few steps of a smaller model")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    console = Console()
    torch.manual_seed(arguments.seed)
    steps, batch = (4, 4) if arguments.quick else (60, 16)

    model = make_model(arguments.quick)
    images = make_batch(2)[0]
    weights = copy.deepcopy(model.state_dict())
    expected = model.eval()(images)
    model.train()
    losses: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}
    with Progress(console=console, transient=True) as progress:
        for name in (BEFORE, AFTER):
            model.load_state_dict(weights)
            if name == AFTER:
                model = fused_dropout.replace(model)
            losses[name], seconds[name] = train(model, steps, batch, arguments.seed, progress, name)

    console.print(f"[bold]{type(model).__name__}[/]")
    console.print(str(fused_dropout.replacement_report(model)), highlight=False, markup=False)
    model.load_state_dict(weights)
    same = torch.equal(model.eval()(images), expected)
    restored = torch.equal(fused_dropout.restore(model)(images), expected)
    for name in (BEFORE, AFTER):
        last = statistics.mean(losses[name][-10:])
        console.print(f"{name:6}  loss {last:.3f}  {1e3 * seconds[name]:.1f} ms a step")
    console.print(f"In evaluation the same numbers, to the bit: {same}; restored: {restored}")
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "convert_model.png"
    save_picture(losses, seconds, path)
    console.print(f"Picture: {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
