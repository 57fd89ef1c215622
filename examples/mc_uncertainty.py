"""Where a classifier knows that it does not know: Monte Carlo dropout by mc_predict.

    python examples/mc_uncertainty.py
    python examples/mc_uncertainty.py --data FOLDER    # with the files of MNIST or Fashion-MNIST

A small network with DropConnect and dropout learns to classify. Then it predicts with its masks
still on, many times over, and two numbers say how uncertain the mean prediction is:

- its entropy: high where classes overlap, and where nothing like the input was ever seen;
- the mutual information of class and masks: high only where the masks disagree, that is where more
  data would help.

So three kinds of inputs are told apart. Clear ones of the eight classes that were learned. Blends
of two of them, which it was shown with the label of either, and about which it can know no more.
And inputs of two classes that it never saw. By default the script makes the data: each class is a
pattern of 64 pixels, covered by noise. With --data it is the digits 0 to 7, and then 8 and 9.

The table has the mean of each number, and the area under the ROC curve (AUROC): how often the
number is higher for an input of an unseen class than for a clear one or a blend. The last row, a
softmax without masks, is what one has without Monte Carlo dropout.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fused_dropout
from fused_dropout._tools.datasets import DataError, load_idx

BATCH = 128
CLASSES, KNOWN = 10, 8
PIXELS = 64
NOISE = 0.8  # beside patterns of 1 and -1
GROUPS = CLEAR, BLENDED, UNSEEN = ("clear", "blended", "unseen class")


@dataclass
class Data:
    """Training examples, clear and blended, and new inputs of each of GROUPS."""

    train_x: Tensor
    train_y: Tensor
    groups: dict[str, Tensor]


@dataclass
class Uncertainty:
    """Of some inputs, one number for each."""

    entropy: Tensor
    mutual_information: Tensor
    entropy_without_masks: Tensor


# ---- data ----------------------------------------------------------------------------------------


def patterns(count: int, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """[count, PIXELS] and their classes: a pattern for each class, and noise."""
    of_class = torch.randn(CLASSES, PIXELS, generator=torch.Generator().manual_seed(0)).sign()
    labels = torch.randint(CLASSES, (count,), generator=draw)
    return of_class[labels] + NOISE * torch.randn(count, PIXELS, generator=draw), labels


def blended(x: Tensor, labels: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each input half and half with another one, and the label of either."""
    other = torch.randperm(len(x), generator=draw)
    first = torch.rand(len(x), generator=draw) < 0.5
    return (x + x[other]) / 2, torch.where(first, labels, labels[other])


def prepared(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], count: int, seed: int
) -> Data:
    """Of examples of all classes: the last two are kept for the end."""
    draw = torch.Generator().manual_seed(seed)
    known = train[1] < KNOWN
    x, labels = train[0][known][:count], train[1][known][:count]
    blends, blend_labels = blended(x, labels, draw)
    known = test[1] < KNOWN
    clear = test[0][known][:1000]
    groups = {
        CLEAR: clear,
        BLENDED: blended(clear, test[1][known][:1000], draw)[0],
        UNSEEN: test[0][~known][:1000],
    }
    return Data(torch.cat([x, blends]), torch.cat([labels, blend_labels]), groups)


def load(folder: Path | None, count: int, seed: int) -> Data:
    """From a folder, or made up."""
    if folder is not None:
        found = load_idx(folder)
        return prepared((found.train_x, found.train_y), (found.test_x, found.test_y), count, seed)
    draw = torch.Generator().manual_seed(seed)
    return prepared(patterns(2 * count, draw), patterns(6000, draw), count, seed)


# ---- the network ---------------------------------------------------------------------------------


def network(features: int) -> nn.Sequential:
    hidden = 256
    return nn.Sequential(
        nn.Linear(features, hidden),
        nn.ReLU(),
        fused_dropout.nn.DropConnectLinear(hidden, hidden, p=0.5),
        nn.ReLU(),
        fused_dropout.nn.Dropout(0.5),
        nn.Linear(hidden, KNOWN),
    )


def train(model: nn.Module, data: Data, epochs: int, seed: int, progress: Progress) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    shuffled = torch.Generator().manual_seed(seed)
    loader = DataLoader(
        TensorDataset(data.train_x, data.train_y), BATCH, shuffle=True, generator=shuffled
    )
    task = progress.add_task("training", total=epochs * len(loader))
    model.train()
    for _ in range(epochs):
        for x, labels in loader:
            loss = nn.functional.cross_entropy(model(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress.advance(task)
    model.eval()


def uncertainty(model: nn.Module, x: Tensor, samples: int) -> Uncertainty:
    """By Monte Carlo dropout, batch after batch."""
    found = fused_dropout.mc_predict(
        model,
        DataLoader(TensorDataset(x), batch_size=1000),
        samples,
        transform=lambda logits: logits.softmax(-1),
        class_dim=-1,
    )
    with torch.no_grad():
        plain = torch.special.entr(model(x).softmax(-1)).sum(-1)
    return Uncertainty(found.entropy, found.mutual_information, plain)


def auroc(seen: Tensor, unseen: Tensor) -> float:
    """How often a number of the unseen is above one of the seen; a tie counts as half."""
    above = (unseen[:, None] > seen).float() + 0.5 * (unseen[:, None] == seen).float()
    return above.mean().item()


# ---- what is shown -------------------------------------------------------------------------------


def table_of(found: dict[str, Uncertainty]) -> Table:
    table = Table(title="Uncertainty in nats")
    table.add_column("")
    for heading in (*GROUPS, "AUROC"):
        table.add_column(heading, justify="right")
    for measure in ("entropy", "mutual_information", "entropy_without_masks"):
        values = {group: getattr(found[group], measure) for group in GROUPS}
        numbers = [values[group].mean().item() for group in GROUPS]
        numbers.append(auroc(torch.cat([values[CLEAR], values[BLENDED]]), values[UNSEEN]))
        table.add_row(measure.replace("_", " "), *(f"{number:.3f}" for number in numbers))
    return table


def save_picture(path: Path, found: dict[str, Uncertainty]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
    for group, own in found.items():
        axes[0].scatter(own.entropy, own.mutual_information, s=3, alpha=0.5, label=group)
        for axis, values in zip(axes[1:], (own.entropy, own.mutual_information), strict=True):
            axis.hist(values, bins=40, alpha=0.6, density=True, label=group)
    axes[0].set(xlabel="entropy, nats", ylabel="mutual information, nats", title="each input")
    axes[1].set(xlabel="nats", ylabel="density", title="entropy")
    axes[2].set(xlabel="nats", ylabel="density", title="mutual information")
    for axis in axes:
        axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER",
        help="four IDX files of MNIST or Fashion-MNIST, plain or gzipped",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("build/examples"), metavar="FOLDER")
    parser.add_argument("--samples", type=int, default=100, help="predictions (default: 100)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="takes seconds")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    console = Console()
    samples = 10 if options.quick else options.samples
    torch.manual_seed(options.seed)
    try:
        data = load(options.data, 500 if options.quick else 10_000, options.seed)
    except DataError as error:
        raise SystemExit(f"mc_uncertainty.py: {error}") from None
    model = network(data.train_x.shape[1])
    found = {}
    with Progress(console=console) as progress:
        train(model, data, 3 if options.quick else 15, options.seed, progress)
        for group, x in progress.track(data.groups.items(), description="predicting"):
            found[group] = uncertainty(model, x, samples)
    console.print(table_of(found))
    path = options.out / "mc_uncertainty.png"
    save_picture(path, found)
    console.print(f"Picture: {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
