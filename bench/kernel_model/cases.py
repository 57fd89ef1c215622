"""The benchmarks' shapes: which launches they make, the least they can take, and their peers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from . import machine as m
from .registers import Array

GROUP = 128  # columns that share a Philox call for each digit

# Peers' times are arithmetic, none is measured: cuBLAS at these rates, torch's dropout moving 5
# bytes an element (its mask is of bytes), inductor's code at 0.75 of a copy's speed.
CUBLAS_RATE = 27e12  # multiply-adds of floats a second, for large products
CUBLAS_AT_TABLE_1 = 10e-6  # seconds


class Peer(NamedTuple):
    """Something else that computes the same."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Case:
    """A call of an op: the launches of `entry` in launches/<file>.cu."""

    name: str
    file: str
    entry: str
    arguments: tuple[int | float, ...]
    units: float  # of work: elements, or pairs of a row and an output times groups of columns
    floor: str  # "FFMA" or "copy"
    floor_seconds: float
    peer: Peer
    in_dram: frozenset[str]  # the arrays that are not found in L2
    contents: Mapping[str, Array] = field(compare=False)


Shape = tuple[int, int, int]
STATE = {"rng_state": np.array([12345, 7], np.int64)}
TABLE_1 = (128, 1024, 1024)  # of Wan et al. 2013: rows, in_features, out_features
LARGE = (512, 4096, 4096)
PRODUCTS = ("forward", "forward_and_bits", "d_input", "d_weight", "d_both")
READING = ("forward", "d_input", "d_weight", "d_both")  # those that may find the masks stored


def _dropconnect(product: str, shape: Shape, p: float, stored: bool) -> Case:
    count = int(np.prod(shape)) * (2 if product == "d_both" else 1)
    is_large = shape == LARGE
    text = "x".join(map(str, shape))
    at_table_1 = CUBLAS_AT_TABLE_1 * (2 if product == "d_both" else 1)
    seconds = count / CUBLAS_RATE if is_large else at_table_1
    return Case(
        f"dropconnect {product} {text} p={p}{' stored' if stored else ''}",
        "dropconnect",
        f"dropconnect_{product}",
        (*shape, p, int(stored)),
        count / GROUP,
        "FFMA",
        count / m.FFMA_RATE,
        Peer("cuBLAS", seconds),
        frozenset({"mask_bits", "bits_out"}) if is_large else frozenset(),
        STATE,
    )


def _moving(
    name: str,
    file: str,
    entry: str,
    arguments: tuple[int | float, ...],
    count: int,
    element_bytes: float,
    peer: Peer | None = None,
) -> Case:
    """A case whose floor is moving `element_bytes` for each of `count` elements."""
    seconds = count * element_bytes / m.COPY_BANDWIDTH
    return Case(
        name,
        file,
        entry,
        arguments,
        count,
        "copy",
        seconds,
        peer or Peer("copy", seconds),
        frozenset({"input", "residual", "result", "grad", "mask_bits"}),
        STATE | {"logit_p": np.array([-2.0], np.float32)},
    )


def _store_masks(shape: Shape, p: float) -> Case:
    text = "x".join(map(str, shape))
    arguments = (*shape, p)
    name = f"dropconnect store_masks {text} p={p}"
    return _moving(
        name, "dropconnect", "dropconnect_store_masks", arguments, int(np.prod(shape)), 1 / 8
    )


def _bias_gradient(rows: int, outs: int, p: float) -> Case:
    name = f"dropconnect d_bias {rows}x{outs} p={p}"
    return _moving(name, "dropconnect", "dropconnect_d_bias", (rows, outs, p), rows * outs, 4)


MAP = (16, 256, 4096)  # images, channels, pixels (64 x 64)
COUNT = int(np.prod(MAP))
EAGER_DROPOUT = Peer("torch", COUNT * 5 / m.COPY_BANDWIDTH)


def _dropout(layout: str, p: float) -> Case:
    entries: dict[str, tuple[str, tuple[int, ...]]] = {
        "contiguous": ("dropout_linear", (COUNT, 0)),
        "residual": ("dropout_linear", (COUNT, 1)),
        "channels_last": ("dropout_channels_last", MAP),
        "channel masks": ("dropout_channels", MAP),
    }
    entry, sizes = entries[layout]
    moved = 6 if layout == "residual" else 4
    peer = EAGER_DROPOUT if layout in ("contiguous", "channels_last") else None
    return _moving(
        f"dropout bf16 {layout} p={p}", "dropout", entry, (p, *sizes), COUNT, moved, peer
    )


EPILOGUE = (8192, 3072)  # rows, features
EPILOGUE_COUNT = int(np.prod(EPILOGUE))
COMPILED = Peer("inductor", EPILOGUE_COUNT * 6 / 0.75 / m.COPY_BANDWIDTH)


def _epilogue(what: str, p: float) -> Case:
    name = f"bias+gelu+dropout+add bf16 {what} p={p}"
    if what == "forward":
        arguments: tuple[int | float, ...] = (p, *EPILOGUE)
        return _moving(name, "epilogue", "epilogue_forward", arguments, EPILOGUE_COUNT, 6, COMPILED)
    arguments = (p, *EPILOGUE, int(what == "d_input and d_bias"))
    return _moving(name, "epilogue", "epilogue_backward", arguments, EPILOGUE_COUNT, 6)


def _noise(name: str, arguments: tuple[int | float, ...], element_bytes: float) -> Case:
    entry = f"noise_{name.replace(' dropout', '').replace(' ', '_')}"
    return _moving(f"{name} bf16", "noise", entry, arguments, COUNT, element_bytes)


def _packed_bits(count: int, p: float) -> Case:
    return _moving(f"packed bits p={p}", "dropout", "draw_packed_bits", (p, count), count, 1 / 8)


PS = (0.5, 0.1)

CASES = (
    *(_dropconnect(product, TABLE_1, p, False) for p in PS for product in PRODUCTS),
    *(_dropconnect(product, TABLE_1, 0.5, True) for product in READING),
    _bias_gradient(128, 1024, 0.5),
    _bias_gradient(512, 4096, 0.5),
    _bias_gradient(32768, 1024, 0.5),
    # Not d_both: its blocks are of two kinds, and the model executes a few that it takes for all.
    *(_dropconnect(product, LARGE, p, False) for p in PS for product in PRODUCTS[:-1]),
    *(_dropconnect(product, LARGE, 0.5, True) for product in READING[:-1]),
    *(_store_masks(shape, 0.1) for shape in (TABLE_1, LARGE)),
    *(_dropout("contiguous", p) for p in PS),
    _dropout("residual", 0.1),
    *(_dropout("channels_last", p) for p in PS),
    _dropout("channel masks", 0.1),
    *(_epilogue("forward", p) for p in PS),
    _epilogue("d_input", 0.1),
    _epilogue("d_input and d_bias", 0.1),
    _noise("gaussian dropout", (0.3, COUNT), 4),
    _noise("concrete dropout forward", (COUNT,), 4),
    _noise("concrete dropout backward", (COUNT,), 6),
    *(_packed_bits(1 << 28, p) for p in PS),
)


def chosen(words: Sequence[str]) -> list[Case]:
    """The cases with all of the words in their names."""
    return [case for case in CASES if all(word in case.name for word in words)]
