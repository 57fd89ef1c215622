"""What dropout in LoRA adapters costs in memory, and what is left of it with DropoutLinear.

    python examples/lora_memory.py

A LoRA adapter (Hu et al. 2022) adds B(A(dropout(x))) to a frozen layer of x, where A and B are
narrow matrices. The dropout is nearly free to compute, but not to train: A's gradient needs its
input, so autograd keeps a dropped copy of x for every adapter, and torch a mask of bytes beside it,
while without dropout all adapters of one x share x itself. fused_dropout.nn.DropoutLinear is
dropout and A in one layer, and draws its mask again in backward: it keeps x, as without dropout.

The script makes a small transformer with frozen random weights, whose queries, keys, values and
feed-forward layers have adapters, and trains these and the output layer to predict the next token.
It does so three times: with nn.Dropout, with DropoutLinear and without dropout. The table has what
autograd keeps between forward and backward, the peak of a whole step above what the model itself
takes, and the loss; the picture shows the memory and the losses of all steps. All three adapters
start from the same numbers, but not from the same masks.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

import fused_dropout
from fused_dropout._tools.memory import peak_extra_bytes

VOCABULARY = 64
RANK = 16
HEADS = 8
P = 0.1
MIB = 2**20
TORCH, OURS, NONE = "nn.Dropout", "DropoutLinear", "no dropout"


@dataclass(frozen=True)
class Size:
    """Of the model, its batches and its training."""

    layers: int
    width: int
    batch: int
    tokens: int
    steps: int


@dataclass
class Run:
    """What one kind of dropout took and gave."""

    kept: int  # bytes, between forward and backward
    peak: int | None  # bytes, of a step; None where nobody tells
    seconds: float  # a step
    losses: list[float]


# ---- the model -----------------------------------------------------------------------------------


def dropped_linear(kind: str, features: int, rank: int) -> nn.Module:
    """Dropout and the adapter's first matrix."""
    if kind == OURS:
        return fused_dropout.nn.DropoutLinear(features, rank, bias=False, p=P)
    first = nn.Linear(features, rank, bias=False)
    return first if kind == NONE else nn.Sequential(nn.Dropout(P), first)


class LoraLinear(nn.Module):
    """A frozen linear layer and its adapter, which adds nothing at first."""

    def __init__(self, kind: str, in_features: int, out_features: int) -> None:
        super().__init__()
        self.base = nn.Linear(in_features, out_features, bias=False).requires_grad_(False)
        self.down = dropped_linear(kind, in_features, RANK)
        self.up = nn.Linear(RANK, out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Block(nn.Module):
    """Attention and a feed-forward layer, each on a normalised input that its adapters share."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width).requires_grad_(False)
        self.query = LoraLinear(kind, width, width)
        self.key = LoraLinear(kind, width, width)
        self.value = LoraLinear(kind, width, width)
        self.norm_2 = nn.LayerNorm(width).requires_grad_(False)
        self.gate = LoraLinear(kind, width, 2 * width)
        self.rise = LoraLinear(kind, width, 2 * width)
        self.fall = LoraLinear(kind, 2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm_1(x)
        query, key, value = (
            layer(normed).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + mixed.transpose(1, 2).flatten(2)
        normed = self.norm_2(x)
        return x + self.fall(F.silu(self.gate(normed)) * self.rise(normed))


class Transformer(nn.Module):
    """Tokens [batch, tokens] to logits [batch, tokens, VOCABULARY]."""

    def __init__(self, kind: str, size: Size) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, size.width).requires_grad_(False)
        self.blocks = nn.Sequential(*(Block(kind, size.width) for _ in range(size.layers)))
        self.head = nn.Linear(size.width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.blocks(self.embedding(tokens)))
        return logits


# ---- training ------------------------------------------------------------------------------------


def sequences(size: Size, draw: torch.Generator) -> Tensor:
    """[batch, tokens + 1]: each token is the one before plus the sequence's own step, 1 to 4."""
    first = torch.randint(VOCABULARY, (size.batch, 1), generator=draw)
    step = torch.randint(1, 5, (size.batch, 1), generator=draw)
    return (first + step * torch.arange(size.tokens + 1)) % VOCABULARY


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def kept_bytes(model: nn.Module, batch: Tensor) -> int:
    """What autograd holds after a forward pass: each piece of memory once, parameters not."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held: dict[int, int] = {}

    def see(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(see, lambda tensor: tensor):
        loss = loss_of(model, batch)
    del loss  # until here, so that no memory is used twice
    return sum(held.values())


def train(kind: str, size: Size, seed: int, progress: Progress) -> Run:
    torch.manual_seed(seed)
    model = Transformer(kind, size)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=2e-3)
    draw = torch.Generator().manual_seed(seed)

    def step() -> float:
        loss = loss_of(model, sequences(size, draw))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    task = progress.add_task(kind, total=size.steps)
    kept = kept_bytes(model, sequences(size, draw))
    losses = [step()]
    progress.advance(task)
    start = time.perf_counter()
    while len(losses) < size.steps - 1:
        losses.append(step())
        progress.advance(task)
    seconds = (time.perf_counter() - start) / max(1, len(losses) - 1)
    peak = peak_extra_bytes(lambda: losses.append(step()))
    progress.advance(task)
    return Run(kept, peak, seconds, losses)


# ---- what is shown -------------------------------------------------------------------------------


def mib(count: int | None) -> str:
    return "?" if count is None else f"{count / MIB:.1f}"


def table_of(runs: dict[str, Run]) -> Table:
    table = Table(title=f"LoRA adapters of rank {RANK}, p = {P}")
    headings = ("", "kept for backward, MiB", "peak of a step, MiB", "seconds a step", "last loss")
    for heading in headings:
        table.add_column(heading, justify="right" if heading else "left")
    for kind, run in runs.items():
        last = f"{run.losses[-1]:.3f}"
        table.add_row(kind, mib(run.kept), mib(run.peak), f"{run.seconds:.2f}", last)
    return table


def save_picture(path: Path, runs: dict[str, Run]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (memory, loss) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for shift, label in ((-0.2, "kept for backward"), (0.2, "peak of a step")):
        counts = [run.kept if shift < 0 else run.peak or 0 for run in runs.values()]
        places = [place + shift for place in range(len(runs))]
        bars = memory.bar(places, [count / MIB for count in counts], 0.4, label=label)
        memory.bar_label(bars, fmt="%.0f")
    memory.set_xticks(range(len(runs)), runs)
    memory.set(ylabel="MiB (lower is better)", title="Memory for activations")
    memory.legend()
    for kind, run in runs.items():
        loss.plot(run.losses, label=kind)
    loss.set(xlabel="step", ylabel="cross entropy, nats", title="Training")
    loss.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("build/examples"), metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="seconds: a tiny model, few steps")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    console = Console()
    size = Size(2, 64, 2, 64, 4) if options.quick else Size(4, 512, 8, 256, 40)
    with Progress(console=console) as progress:
        runs = {kind: train(kind, size, options.seed, progress) for kind in (TORCH, OURS, NONE)}
    console.print(table_of(runs))
    path = options.out / "lora_memory.png"
    save_picture(path, runs)
    console.print(f"Picture: {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
