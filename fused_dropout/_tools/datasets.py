"""Images to train on: scikit-learn's bundled digits, and MNIST-like IDX files from a folder."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from dataclasses import dataclass, replace
from io import BufferedIOBase
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

CLASSES = 10
_UINT8_CODE = 0x08
_TEST_FRACTION = 0.5
_SPLIT_SEED = 0


@dataclass(frozen=True)
class Dataset:
    """Images as rows of features in [0, 1], with their labels.

    train_x float32 [N, features], train_y int64 [N] in 0..9; test_x and test_y alike.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor

    @property
    def features(self) -> int:
        return self.train_x.shape[1]


_Data = TypeVar("_Data", bound=Dataset)


def subset(data: _Data, examples: int, seed: int) -> _Data:
    """`examples` training examples, drawn at random; the test set stays whole."""
    if examples == len(data.train_x):
        return data
    shuffled = torch.randperm(len(data.train_x), generator=torch.Generator().manual_seed(seed))
    chosen = shuffled[:examples]
    return replace(data, train_x=data.train_x[chosen], train_y=data.train_y[chosen])


class DataError(ValueError):
    """A data file is missing or is not what it should be; the message is one clear line."""


def load_digits() -> Dataset:
    """The 1797 8x8 digits bundled with scikit-learn, split into halves (fixed, stratified).

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
    """
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    pixels, labels = sklearn_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        (pixels / 16.0).astype(np.float32),
        labels.astype(np.int64),
        test_size=_TEST_FRACTION,
        random_state=_SPLIT_SEED,
        stratify=labels,
    )
    return Dataset("digits", *map(torch.from_numpy, (train_x, train_y, test_x, test_y)))


def load_idx(directory: str | Path) -> Dataset:
    """The four IDX files of MNIST or Fashion-MNIST, plain or gzipped, from one folder.

    Expects train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
    t10k-labels-idx1-ubyte, each with or without ".gz"
    (format: http://yann.lecun.com/exdb/mnist/, "FILE FORMATS").

    Raises:
        DataError: the folder or a file is missing, or a file is truncated, corrupt, empty, or
            does not fit its companion (counts, image sizes, labels outside 0..9).
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise DataError(f"data folder {folder} does not exist or is not a folder")
    train_x, train_y = _load_split(folder, "train")
    test_x, test_y = _load_split(folder, "t10k")
    if train_x.shape[1] != test_x.shape[1]:
        raise DataError(
            f"{folder}: training images have {train_x.shape[1]} pixels, "
            f"test images {test_x.shape[1]}; they must agree"
        )
    return Dataset(folder.resolve().name, train_x, train_y, test_x, test_y)


def _load_split(folder: Path, prefix: str) -> tuple[Tensor, Tensor]:
    images_path = _find(folder, f"{prefix}-images-idx3-ubyte")
    labels_path = _find(folder, f"{prefix}-labels-idx1-ubyte")
    images = _read_idx(images_path, dimensions=3)
    labels = _read_idx(labels_path, dimensions=1)
    if len(images) != len(labels):
        raise DataError(
            f"{images_path.name} holds {len(images)} images but {labels_path.name} holds "
            f"{len(labels)} labels; they must agree"
        )
    if images.size == 0:
        raise DataError(f"{images_path} holds no pixels (shape {images.shape})")
    if labels.max() >= CLASSES:
        raise DataError(f"{labels_path} holds label {labels.max()}; labels must be 0..9")
    pixels = images.reshape(len(images), -1).astype(np.float32) / 255.0
    return torch.from_numpy(pixels), torch.from_numpy(labels.astype(np.int64))


def _find(folder: Path, name: str) -> Path:
    for candidate in (folder / name, folder / f"{name}.gz"):
        if candidate.is_file():
            return candidate
    raise DataError(f"{name} (or {name}.gz) is missing in {folder}")


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array of an IDX file: magic (0, 0, type, rank), big-endian sizes, then bytes."""
    is_gzip = path.suffix == ".gz"
    try:
        with gzip.open(path) if is_gzip else path.open("rb") as file:
            return _parse_idx(file, path, dimensions)
    except (OSError, EOFError, zlib.error) as error:
        kind = "a complete gzip file" if is_gzip else "a readable file"
        raise DataError(f"{path} cannot be read (expected {kind}): {error}") from error


def _parse_idx(file: BufferedIOBase, path: Path, dimensions: int) -> np.ndarray:
    """The array in `file`, of which no more is read than its header announces."""
    size = 4 + 4 * dimensions
    header = _read_at_most(file, size)
    if len(header) < size:
        raise DataError(
            f"{path} is truncated: {len(header)} bytes, expected at least {size} (IDX header)"
        )
    magic, *shape = struct.unpack(f">{1 + dimensions}I", header)
    expected_magic = _UINT8_CODE << 8 | dimensions
    if magic != expected_magic:
        raise DataError(
            f"{path} is not an IDX file of {dimensions}-D bytes: "
            f"magic number 0x{magic:08x}, expected 0x{expected_magic:08x}"
        )
    expected = math.prod(shape)
    content = _read_at_most(file, expected + 1)
    if len(content) != expected:
        found = f"truncated: {size + len(content)} bytes"
        if len(content) > expected:
            found = "too long: more bytes than it announces"
        raise DataError(f"{path} is {found}, expected {size + expected} for shape {tuple(shape)}")
    return np.frombuffer(content, np.uint8).reshape(shape)


def _read_at_most(file: BufferedIOBase, count: int) -> bytes:
    """Up to `count` bytes, in pieces: memory grows with what is there, not with `count`."""
    pieces = []
    while count > 0 and (piece := file.read(min(count, 2**20))):
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)
