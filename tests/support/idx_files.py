"""Writes small folders of IDX files, the format of MNIST, for the tests."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np

TRAIN_IMAGES = "train-images-idx3-ubyte"
TRAIN_LABELS = "train-labels-idx1-ubyte"
TEST_IMAGES = "t10k-images-idx3-ubyte"
TEST_LABELS = "t10k-labels-idx1-ubyte"


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">{1 + array.ndim}I", 0x0800 | array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx_folder(folder: Path, train: int = 6, test: int = 4, size: int = 5) -> None:
    """Random images, plain for training and gzipped for test."""
    rng = np.random.default_rng(0)
    for images, labels, count in (
        (TRAIN_IMAGES, TRAIN_LABELS, train),
        (TEST_IMAGES, TEST_LABELS, test),
    ):
        (folder / images).write_bytes(idx_bytes(rng.integers(0, 256, (count, size, size))))
        (folder / labels).write_bytes(idx_bytes(rng.integers(0, 10, count)))
    for name in (TEST_IMAGES, TEST_LABELS):
        plain = folder / name
        (folder / f"{name}.gz").write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
