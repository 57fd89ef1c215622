"""The zoneout kernels of every instruction set: elements are moved bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.dropout_kernels import packed
from support.tensors import DTYPES
from torch import Tensor

from fused_dropout import reference
from simd_on_any_cpu.kernels import OUT, Kernels, Random, filled

SEED, OFFSET = -5, 12
COUNTS = (1, 15, 16, 17, 127, 128, 129, 1000, 5000)  # edges of vectors, groups and drawn batches
INTS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def any_bits(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    ints = INTS[dtype.itemsize]
    draw = torch.Generator().manual_seed(seed)
    bounds = torch.iinfo(ints)
    return torch.randint(bounds.min, bounds.max, shape, dtype=ints, generator=draw)


def words_of(kept: Tensor) -> Tensor:
    """Packed, with the spare words that kernels may read."""
    words = np.append(packed(kept), np.full(4, 0xFFFFFFFF, np.uint32))
    return torch.from_numpy(words.view(np.int32))


def check(
    kernels: Kernels,
    names: tuple[str, str],
    dtype: torch.dtype,
    kept: Tensor,
    first: tuple[Any, ...],
    last: tuple[Any, ...],
) -> None:
    """Both passes on elements of the shape of `kept`, with arguments before and behind them."""
    select, split = (getattr(kernels, name) for name in names)
    shape = tuple(kept.shape)
    a, b = any_bits(shape, dtype, 1), any_bits(shape, dtype, 2)
    out = filled(shape, a.dtype, select, dtype, *first, a, b, OUT, *last)
    assert torch.equal(out, torch.where(kept, a, b))
    other = torch.empty_like(a)
    d_input = filled(shape, a.dtype, split, dtype, *first, a, OUT, other, *last)
    d_previous = filled(shape, a.dtype, split, dtype, *first, a, other, OUT, *last)
    assert torch.equal(d_input, torch.where(kept, a, 0))
    assert torch.equal(d_previous, torch.where(kept, 0, a))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", COUNTS)
def test_in_the_order_of_the_bits(kernels: Kernels, count: int, dtype: torch.dtype) -> None:
    for p in (0.5, 0.1):
        kept = reference.mask(384 + count, p, seed=SEED, offset=OFFSET)[384:]
        drawn = (Random(SEED, OFFSET, p),)
        names = ("zoneout_draw_and_select", "zoneout_draw_and_split")
        check(kernels, names, dtype, kept, drawn, (count, 3))
        names = ("zoneout_select", "zoneout_split")
        check(kernels, names, dtype, kept, (), (count, words_of(kept)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "cols"), [(1, 16), (5, 17), (33, 31), (70, 100)])
def test_columns_of_bits(kernels: Kernels, rows: int, cols: int, dtype: torch.dtype) -> None:
    """Element (r, c) has bit first_bits[c] + r: columns in reverse order, with gaps."""
    bits = reference.mask(3 + cols * (rows + 2), 0.4, seed=SEED, offset=OFFSET)
    kept = bits[3:].view(cols, rows + 2)[:, :rows].T.flip(1)
    first_bits = 3 + (rows + 2) * torch.arange(cols).flip(0)
    tile = (rows, cols, cols, first_bits, words_of(bits))
    names = ("zoneout_select_columns", "zoneout_split_columns")
    check(kernels, names, dtype, kept.contiguous(), (), tile)
