"""Images to train on: MNIST and Fashion-MNIST files, CIFAR-10 and SVHN, scikit-learn's digits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fused_dropout._tools.common import ArgumentError
from fused_dropout._tools.datasets import DataError, Dataset, load_digits, load_idx, subset

DIGITS = "digits"  # of scikit-learn: small, and always there

# Where people get them; `--data DIR` takes the folder that holds them.
WHERE = {
    "mnist": "four IDX files: https://yann.lecun.com/exdb/mnist, also at "
    "https://ossci-datasets.s3.amazonaws.com/mnist",
    "fashion-mnist": "four IDX files: https://github.com/zalandoresearch/fashion-mnist",
    "cifar10": "torchvision.datasets.CIFAR10(DIR, download=True)",
    "svhn": "torchvision.datasets.SVHN(DIR, download=True), with split='train' and 'test'",
}
_IDX_FOLDERS = {
    "mnist": ("mnist", "MNIST", "MNIST/raw"),
    "fashion-mnist": ("fashion-mnist", "fashion_mnist", "FashionMNIST", "FashionMNIST/raw"),
}
_IDX_FILE = "train-images-idx3-ubyte"
_FILES_OF_TORCHVISION = {"cifar10": "cifar-10-batches-py", "svhn": "train_32x32.mat"}


@dataclass(frozen=True)
class Images(Dataset):
    """A data set whose rows are images, channel by channel."""

    shape: tuple[int, int, int]  # channels, height, width of an image

    @property
    def train(self) -> tuple[Tensor, Tensor]:
        """Training images and labels."""
        return self.train_x, self.train_y

    @property
    def test(self) -> tuple[Tensor, Tensor]:
        """Test images and labels."""
        return self.test_x, self.test_y

    def part(self, examples: int | None, seed: int) -> Images:
        """That many training images drawn by the seed (None: all); the test set stays whole."""
        there_are = len(self.train_x)
        return subset(self, there_are if examples is None else min(examples, there_are), seed)

    def with_fewer_tests(self, examples: int | None) -> Images:
        """The first test images only (None: all)."""
        return replace(self, test_x=self.test_x[:examples], test_y=self.test_y[:examples])


def find(wanted: tuple[str, ...], folder: str | None) -> str:
    """The first of the wanted kinds that the folder holds; without a folder, scikit-learn's digits.

    "" where nothing is wanted.

    Raises:
        ArgumentError: the folder holds none of them.
    """
    if not wanted:
        return ""
    if folder is None:
        return DIGITS
    if not Path(folder).is_dir():
        raise ArgumentError(f"--data {folder} does not exist or is not a folder")
    for kind in wanted:
        if _place(kind, Path(folder)) is not None:
            return kind
    places = "; ".join(f"{kind}: {WHERE[kind]}" for kind in wanted)
    raise ArgumentError(f"--data {folder} holds none of what this needs ({places})")


@lru_cache(maxsize=2)
def load(kind: str, folder: str | None) -> Images:
    """Images of the kind that `find` found.

    Raises:
        ArgumentError: a file is damaged; torchvision is missing.
    """
    if kind == DIGITS or folder is None:
        return _of_idx(DIGITS, load_digits)
    place = _place(kind, Path(folder))
    if place is None:
        raise ArgumentError(f"--data {folder} does not hold {kind}")
    if kind in _IDX_FOLDERS:
        return _of_idx(kind, lambda: load_idx(place))
    return _of_torchvision(kind, place)


def _place(kind: str, folder: Path) -> Path | None:
    """The folder with the files of this kind, None where there are none."""
    if kind in _FILES_OF_TORCHVISION:
        return folder if (folder / _FILES_OF_TORCHVISION[kind]).exists() else None
    named = [folder / name for name in _IDX_FOLDERS[kind]]
    # The files of MNIST and Fashion-MNIST have the same names: the folder's name tells them apart.
    # Where it names neither, it may hold either.
    others = {name for names in _IDX_FOLDERS.values() for name in names}
    own = folder.resolve().name
    if own in _IDX_FOLDERS[kind] or own not in others:
        named.append(folder)
    return next((place for place in named if _has_idx(place)), None)


def _has_idx(folder: Path) -> bool:
    return any((folder / f"{_IDX_FILE}{suffix}").is_file() for suffix in ("", ".gz"))


def _of_idx(name: str, read: Callable[[], Dataset]) -> Images:
    try:
        data = read()
    except DataError as error:
        raise ArgumentError(str(error)) from error
    side = round(data.features**0.5)
    if side * side != data.features:
        raise ArgumentError(f"{name}: images must be square, got {data.features} pixels")
    return Images(name, data.train_x, data.train_y, data.test_x, data.test_y, shape=(1, side, side))


def _of_torchvision(kind: str, folder: Path) -> Images:
    try:
        from torchvision import datasets
    except ModuleNotFoundError as error:
        raise ArgumentError(
            f"--data {folder}: {kind} needs torchvision, which is not installed"
        ) from error
    try:
        if kind == "cifar10":
            parts = [datasets.CIFAR10(str(folder), train=train) for train in (True, False)]
            pixels = [np.transpose(part.data, (0, 3, 1, 2)) for part in parts]
            labels = [np.asarray(part.targets) for part in parts]
        else:
            parts = [datasets.SVHN(str(folder), split=split) for split in ("train", "test")]
            pixels = [part.data for part in parts]
            labels = [part.labels for part in parts]
    except (RuntimeError, OSError) as error:  # incomplete or damaged
        raise ArgumentError(f"--data {folder}: torchvision cannot read {kind}: {error}") from error
    train_x, test_x = (
        torch.from_numpy(part.reshape(len(part), -1).astype(np.float32) / 255.0) for part in pixels
    )
    train_y, test_y = (torch.from_numpy(part.astype(np.int64)) for part in labels)
    return Images(kind, train_x, train_y, test_x, test_y, shape=(3, 32, 32))
