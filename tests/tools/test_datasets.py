"""The demo's data: the bundled digits and IDX folders, good and broken."""

from __future__ import annotations

import gzip
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.idx_files import (
    TEST_IMAGES,
    TEST_LABELS,
    TRAIN_IMAGES,
    TRAIN_LABELS,
    idx_bytes,
    write_idx_folder,
)

from fused_dropout._tools.datasets import DataError, load_digits, load_idx

Damage = Callable[[bytes], bytes]


def test_digits_are_complete_scaled_and_split_the_same_every_time() -> None:
    pytest.importorskip("sklearn")
    data, again = load_digits(), load_digits()
    assert data.features == 64
    assert len(data.train_x) + len(data.test_x) == 1797
    assert len(data.train_y) == len(data.train_x)
    assert data.train_x.dtype == torch.float32 and data.train_y.dtype == torch.int64
    assert data.train_x.min() == 0.0 and data.train_x.max() == 1.0
    assert data.train_y.unique().tolist() == data.test_y.unique().tolist() == list(range(10))
    assert torch.equal(data.train_x, again.train_x) and torch.equal(data.test_y, again.test_y)


def test_idx_reads_plain_and_gzipped_files(tmp_path: Path) -> None:
    write_idx_folder(tmp_path)
    pixels = np.arange(6 * 25).reshape(6, 5, 5)
    labels = np.array([9, 0, 3, 3, 1, 7])
    (tmp_path / TRAIN_IMAGES).write_bytes(idx_bytes(pixels))
    (tmp_path / TRAIN_LABELS).write_bytes(idx_bytes(labels))

    data = load_idx(tmp_path)

    assert data.name == tmp_path.name
    assert data.train_x.shape == (6, 25) and data.test_x.shape == (4, 25)
    assert data.train_x.dtype == torch.float32 and data.train_y.dtype == torch.int64
    assert torch.equal(data.train_x, torch.arange(150.0).view(6, 25) / 255)
    assert data.train_y.tolist() == labels.tolist()


def test_idx_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere does not exist"):
        load_idx(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS])
def test_idx_missing_file_names_file_and_folder(tmp_path: Path, name: str) -> None:
    write_idx_folder(tmp_path)
    for file in (tmp_path / name, tmp_path / f"{name}.gz"):
        file.unlink(missing_ok=True)
    with pytest.raises(DataError, match=rf"{name} .* is missing in {tmp_path}"):
        load_idx(tmp_path)


def change(content: bytes, start: int, new: bytes) -> bytes:
    return content[:start] + new + content[start + len(new) :]


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (TRAIN_IMAGES, lambda b: b[:-1], r"train-images.* truncated: 165 bytes, expected 166"),
        (TRAIN_IMAGES, lambda b: b + b"x", r"train-images.* too long: .*expected 166"),
        (TRAIN_IMAGES, lambda b: b[:7], r"truncated: 7 bytes, expected at least 16"),
        (TRAIN_IMAGES, lambda b: b"", r"truncated: 0 bytes"),
        (TRAIN_IMAGES, lambda b: change(b, 3, b"\1"), r"0x00000801, expected 0x00000803"),
        (TRAIN_LABELS, lambda b: change(b, 2, b"\x0d"), r"0x00000d01, expected 0x00000801"),
        (TRAIN_LABELS, lambda b: change(b, 8, b"\x0a"), r"train-labels.*label 10; .*0\.\.9"),
        (TRAIN_LABELS, lambda b: idx_bytes(np.zeros(5)), r"6 images but .* 5 labels"),
        (TRAIN_IMAGES, lambda b: idx_bytes(np.zeros((6, 4, 4))), r"16 pixels, test images 25"),
        (TRAIN_IMAGES, lambda b: idx_bytes(np.zeros((6, 0, 5))), r"no pixels"),
    ],
)
def test_idx_damage_is_explained(tmp_path: Path, name: str, damage: Damage, message: str) -> None:
    write_idx_folder(tmp_path)
    file = tmp_path / name
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=message):
        load_idx(tmp_path)


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (b"\0" * 16, "magic number 0x00000000"),
        (idx_bytes(np.zeros((6, 5, 5)))[:16], "too long: .*expected 166 for shape"),
    ],
)
def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path, start: bytes, message: str) -> None:
    write_idx_folder(tmp_path)
    (tmp_path / TRAIN_IMAGES).unlink()
    with gzip.open(tmp_path / f"{TRAIN_IMAGES}.gz", "wb") as file:
        file.write(start)
        for _ in range(64):
            file.write(bytes(2**20))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=message):
            load_idx(tmp_path)
        assert tracemalloc.get_traced_memory()[1] < 2**22
    finally:
        tracemalloc.stop()


def test_a_header_that_announces_more_than_there_is(tmp_path: Path) -> None:
    write_idx_folder(tmp_path)
    content = idx_bytes(np.zeros((6, 5, 5)))
    (tmp_path / TRAIN_IMAGES).write_bytes(change(content, 4, b"\xff" * 12))
    with pytest.raises(
        DataError, match=r"truncated: 166 bytes, expected 79228162458924105385300197"
    ):
        load_idx(tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda b: b[: len(b) // 2], lambda b: b"not gzip", lambda b: b""]
)
def test_idx_damaged_gzip_is_explained(tmp_path: Path, damage: Damage) -> None:
    write_idx_folder(tmp_path)
    file = tmp_path / f"{TEST_IMAGES}.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte\.gz"):
        load_idx(tmp_path)
