"""The CUDA DropBlock kernels, run on the CPU: the CPU's masks and results, bit for bit."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from cuda_on_cpu.runner import Misaligned, Worker
from support.kernel_memory import check_end, memory, name_of, poisoned
from support.tensors import DTYPES
from torch import Tensor

import fused_dropout
from fused_dropout import reference
from fused_dropout._core import extension

SEED = 99
EPS = 0.5
MANY_BLOCKS = 1 << 14


class Maps(NamedTuple):
    """The maps of a mask: [samples, channels, depth, height, width] with a block's sides."""

    samples: int
    channels: int
    size: tuple[int, int, int]
    block: tuple[int, int, int]
    gamma: float

    @property
    def bits(self) -> int:
        return self.samples * self.channels * math.prod(self.size)

    def geometry(self) -> np.ndarray:
        return np.array([self.samples * self.channels, *self.size, *self.block], np.int64)


# Words that hold parts of several rows, maps and samples; rows of several words; blocks that reach
# over words, over all of a row, and over 32 columns and more; more words than a block has threads.
MAPS = (
    Maps(1, 1, (1, 1, 1), (1, 1, 1), 0.5),
    Maps(3, 5, (1, 7, 7), (1, 7, 7), 0.3),
    Maps(2, 4, (1, 7, 7), (1, 3, 3), 0.05),
    Maps(2, 3, (1, 13, 9), (1, 4, 2), 0.05),
    Maps(2, 5, (1, 56, 56), (1, 7, 7), 0.003),
    Maps(3, 2, (1, 1, 333), (1, 1, 5), 0.02),
    Maps(2, 1, (1, 3, 200), (1, 2, 33), 0.01),
    Maps(2, 1, (1, 2, 200), (1, 1, 34), 0.01),
    Maps(1, 2, (1, 2, 300), (1, 2, 150), 0.004),
    Maps(2, 2, (1, 4, 65), (1, 4, 65), 0.5),
    Maps(2, 2, (6, 9, 10), (3, 3, 3), 0.01),
    Maps(1, 3, (5, 4, 40), (5, 1, 36), 0.05),
    Maps(2, 2, (5, 4, 7), (1, 2, 3), 0.05),
    Maps(40, 1, (1, 2, 4), (1, 1, 2), 0.2),
    # More samples than a block has threads.
    Maps(600, 1, (1, 2, 4), (1, 1, 2), 0.2),
    Maps(2, 2, (1, 9, 9), (1, 3, 3), 1.0),
    Maps(2, 2, (1, 9, 9), (1, 3, 3), 0.0),
)


def expected_mask(maps: Maps) -> Tensor:
    shape = (maps.samples, maps.channels, *maps.size)
    return reference.block_mask(shape, maps.block, maps.gamma, SEED)


def packed(kept: Tensor, words: int) -> np.ndarray:
    bits = np.zeros(words * 32, np.uint8)
    bits[: kept.numel()] = kept.numpy().ravel()
    return np.packbits(bits, bitorder="little").view(np.uint32)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("maps", MAPS, ids=str)
def test_masks_and_scales(device: Worker, maps: Maps, per_sample: bool) -> None:
    check_mask_and_scales(device, maps, per_sample)


@pytest.mark.parametrize("block", [33, 34, 35, 64, 65, 66, 97])
def test_a_wide_block_s_farthest_seed(device: Worker, block: int) -> None:
    """Of a word's first element, it alone is dropped: in some words, here, out of many maps."""
    maps = Maps(400, 1, (1, 1, 128), (1, 1, block), 0.01)
    seeds = fused_dropout.mask(400 * (129 - block), maps.gamma, seed=SEED, digits=32)
    dropped = ~seeds.view(400, -1)
    firsts = [col for col in (32, 64, 96) if col >= block - 1]
    alone = [dropped[:, c - block + 1] & ~dropped[:, c - block + 2 : c + 1].any(1) for c in firsts]
    assert torch.stack(alone).any()
    check_mask_and_scales(device, maps, per_sample=False)


# A tile of 256 words has 8192 bits.
@pytest.mark.parametrize("bits", [8190, 8191, 8192, 8193, 2 * 8192 - 1])
def test_samples_that_end_near_a_tile_s_end(device: Worker, bits: int) -> None:
    check_mask_and_scales(device, Maps(3, 1, (1, 1, bits), (1, 1, 2), 0.1), per_sample=True)


def check_mask_and_scales(device: Worker, maps: Maps, per_sample: bool) -> None:
    kept = expected_mask(maps)
    words = (math.ceil(maps.bits / 128) + 1) * 4
    scales = maps.samples if per_sample else 1
    bits, _ = poisoned(device, words, dtype=torch.float32)
    scale_memory, scale = poisoned(device, scales, dtype=torch.float64)
    state = fused_dropout.make_rng_state(SEED).numpy()
    result = device.call(
        "block_mask",
        state,
        maps.geometry(),
        maps.gamma,
        EPS,
        scales,
        words,
        bits,
        scale_memory,
        MANY_BLOCKS,
    )
    assert result == 0
    assert np.array_equal(bits.view(np.uint32)[:words], packed(kept, words))
    check_end(bits, words)
    counts = kept.reshape(scales, -1).sum(1).double()
    assert torch.equal(scale, torch.tensor(maps.bits / scales).double() / (counts + EPS))
    check_end(scale_memory, scales)


def test_nothing_is_counted_without_scales(device: Worker) -> None:
    maps = MAPS[4]
    words = (math.ceil(maps.bits / 128) + 1) * 4
    bits = np.full(words, 0xA5A5A5A5, np.uint32)
    scale = np.full(1, np.nan)
    state = fused_dropout.make_rng_state(SEED).numpy()
    arguments = (state, maps.geometry(), maps.gamma, EPS, 0, words, bits, scale, MANY_BLOCKS)
    assert device.call("block_mask", *arguments) == 0
    assert np.array_equal(bits, packed(expected_mask(maps), words))
    assert np.isnan(scale).all()


@pytest.mark.parametrize("blocks", [1, 2, MANY_BLOCKS])
def test_several_tiles_for_a_block(device: Worker, blocks: int) -> None:
    """Tiles of 256 words, of which some lie in one sample and others in two."""
    maps = Maps(3, 7, (1, 40, 41), (1, 5, 5), 0.01)
    words = (math.ceil(maps.bits / 128) + 1) * 4
    assert words > 4 * 256
    bits, scale = np.zeros(words, np.uint32), np.zeros(3)
    state = fused_dropout.make_rng_state(SEED).numpy()
    arguments = (state, maps.geometry(), maps.gamma, EPS, 3, words, bits, scale, blocks)
    assert device.call("block_mask", *arguments) == 0
    kept = expected_mask(maps)
    assert np.array_equal(bits, packed(kept, words))
    expected = maps.bits / 3 / (kept.reshape(3, -1).sum(1).double().numpy() + EPS)
    assert np.allclose(scale, expected, rtol=1e-15)


# ---- dropout with the mask ----------------------------------------------------------------------

FORMATS = ("contiguous", "channels_last", "shared", "shared_channels_last")
SHAPES = ((3, 5, 6, 7), (2, 8, 8, 16), (2, 33, 4, 9), (1, 1, 1, 1))


def layout_of(shape: tuple[int, ...], name: str) -> list[tuple[int, int]]:
    """(size, distance of the mask's bits) of the dimensions, outermost in memory first."""
    n, c, plane = shape[0], shape[1], shape[2] * shape[3]
    return {
        "contiguous": [(n * c * plane, 1)],
        "channels_last": [(n, c * plane), (plane, 1), (c, plane)],
        "shared": [(n, plane), (c, 0), (plane, 1)],
        "shared_channels_last": [(n * plane, 1), (c, 0)],
    }[name]


@pytest.mark.parametrize("misaligned", ["neither", "input", "result"])
@pytest.mark.parametrize("scales", ["none", "batch", "sample"])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_dropout_with_the_mask(
    device: Worker, dtype: torch.dtype, name: str, scales: str, misaligned: str
) -> None:
    for shape in SHAPES:
        torch.manual_seed(1)
        input = torch.randn(shape, dtype=dtype)
        input[0, 0, 0, 0] = math.nan
        last = torch.channels_last if name.endswith("channels_last") else torch.contiguous_format
        input = input.contiguous(memory_format=last)
        shared = name.startswith("shared")
        count = {"none": 0, "batch": 1, "sample": shape[0]}[scales]
        state = fused_dropout.make_rng_state(SEED)
        block = [min(3, size) for size in shape[2:]]
        bits, scale = extension.operators().drop_block_mask(
            input, state, block, 0.08, shared, count, EPS
        )
        expected = extension.operators().drop_block(input, bits, scale, shared)
        in_memory = memory(input.as_strided((input.numel(),), (1,)))
        out, result = poisoned(device, input.numel(), dtype=dtype)
        dims = np.array(layout_of(shape, name), np.int64)
        offsets = [(misaligned == which) * dtype.itemsize for which in ("input", "result")]
        arguments = (dims, len(dims), input.numel(), bits.numpy().view(np.uint32))
        scale_memory = scale.numpy() if count else np.full(1, np.nan)
        target = Misaligned(out, offsets[1])
        code = device.call(
            f"drop_block_{name_of(dtype)}",
            *arguments,
            scale_memory,
            count,
            Misaligned(in_memory, offsets[0]),
            target,
        )
        assert code == 0
        wanted = expected.as_strided((input.numel(),), (1,))
        assert torch.equal(result.nan_to_num(7.0), wanted.nan_to_num(7.0))
        check_end(out, input.numel())
