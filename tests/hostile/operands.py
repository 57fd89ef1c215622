"""Tensors of odd strides, bits and values, drawn as Python code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Shape = tuple[int, ...]

_MOST_MEMORY = 20_000  # elements of a base

DTYPES = ("float32", "bfloat16", "float16", "float64")
COMPLEX = {"float32": "complex64", "float64": "complex128", "float16": "complex32"}


def numbers(shape: Sequence[int], dtype: torch.dtype, seed: int, kind: str = "normal") -> Tensor:
    """A contiguous tensor of normal numbers, some of them replaced as ``kind`` says.

    "special" has NaN, infinities, zeros and denormals among them, "extreme" the largest and the
    smallest numbers too; "denormal" has denormals only, "positive" is what it says.
    """
    shape = tuple(shape)
    draw = torch.Generator().manual_seed(seed)
    if dtype.is_complex:
        parts = {"complex32": torch.float16, "complex64": torch.float32}
        part = parts.get(str(dtype).removeprefix("torch."), torch.float64)
        return torch.view_as_complex(numbers((*shape, 2), part, seed, kind))
    values = torch.randn(shape, generator=draw, dtype=torch.float64)
    if not dtype.is_floating_point:
        return (values * 50).clamp(0, 127).to(dtype)
    limits = torch.finfo(dtype if dtype.itemsize > 1 else torch.float32)
    tiny = limits.smallest_normal * limits.eps
    special = {
        "special": [math.nan, math.inf, -math.inf, 0.0, -0.0, tiny, -3 * tiny],
        "extreme": [math.nan, math.inf, -math.inf, -0.0, tiny, limits.max, limits.min],
    }
    if kind == "denormal":
        values = values * limits.smallest_normal / 8
    elif kind == "positive":
        values = values.abs() + 0.01
    elif kind in special:
        choices = torch.tensor(special[kind], dtype=torch.float64)
        which = torch.randint(0, len(choices), shape, generator=draw)
        replaced = torch.rand(shape, generator=draw) < 0.3
        values = torch.where(replaced, choices[which], values)
    return values.to(dtype)


class Layout(NamedTuple):
    """How a view of the wanted shape comes from a contiguous base."""

    name: str
    base: Shape
    view: str  # Python code, {b} is the base
    complex_base: bool = False
    overlaps: bool = False

    @property
    def expectation_in_place(self) -> str:
        """What is to come of writing to overlapping elements: torch finds strides of 0 only."""
        return "error" if self.name == "expanded" else "either"


@dataclass(frozen=True)
class Operand:
    """A tensor argument: code for a contiguous leaf and for the view of it that is passed."""

    name: str
    shape: Shape
    dtype: str
    kind: str
    seed: int
    layout: Layout
    grad: bool = False
    through_copy: bool = False  # the view is of a copy of the leaf, so that it may be written to
    inference: bool = False  # made in inference mode

    @property
    def may_refuse_writes(self) -> bool:
        """Whether autograd has reasons not to let the operand be written to."""
        return self.inference or (self.grad and not self.through_copy)

    @property
    def leaf(self) -> str:
        dtype = COMPLEX[self.dtype] if self.layout.complex_base else self.dtype
        return f"numbers({self.layout.base}, torch.{dtype}, {self.seed}, {self.kind!r})"

    def view_of(self, base: str) -> str:
        return self.layout.view.format(b=base)

    def lines(self) -> list[str]:
        if self.inference:
            return [f"with torch.inference_mode(): {self.name} = {self.view_of(self.leaf)}"]
        if not self.grad:
            return [f"{self.name} = {self.view_of(self.leaf)}"]
        base = f"({self.name}_leaf * 1)" if self.through_copy else f"{self.name}_leaf"
        return [
            f"{self.name}_leaf = {self.leaf}.requires_grad_()",
            f"{self.name} = {self.view_of(base)}",
        ]


def plain(name: str, shape: Shape, dtype: str, seed: int, kind: str = "normal") -> Operand:
    """A contiguous operand."""
    return Operand(name, shape, dtype, kind, seed, Layout("contiguous", shape, "{b}"))


def draw_shape(random: Random, dims: int | None = None, most: int = 3000) -> Shape:
    """A shape of ``dims`` dimensions, 0 to 6 by default, some of them odd, one, or empty."""
    if dims is None:
        dims = random.choice((0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 6))
    sizes = []
    for _ in range(dims):
        size = random.choice((0, 1, 1, 2, 3, 4, 5, 7, 8, 16, 17, 31, 33, 64, 65, 127, 128, 129))
        if size == 0 and random.random() < 0.7:
            size = 2
        sizes.append(size)
    if dims == 1 and random.random() < 0.3:
        sizes = [random.choice((255, 257, 1023, 1025, 2049, 4095, 4097))]
        most = 5000
    while math.prod(sizes) > most:
        widest = max(range(dims), key=lambda dim: sizes[dim])
        sizes[widest] = max(1, sizes[widest] // 2)
    return tuple(sizes)


def draw_layout(random: Random, shape: Shape, dtype: str) -> Layout:
    """One of the layouts below that this shape can have."""
    drawn = random.choice(_LAYOUTS)(random, shape, dtype)
    if drawn is None or math.prod(drawn.base) > _MOST_MEMORY:
        return Layout("contiguous", shape, "{b}")
    return drawn


def draw_operand(
    random: Random,
    name: str,
    shape: Shape,
    dtype: str,
    *,
    kinds: Sequence[str] = ("normal",),
    grad: float = 0.3,
    through_copy: bool = False,
    own_memory: bool = False,
) -> Operand:
    """An operand of this shape and dtype; with ``own_memory`` no two elements share any."""
    layout = draw_layout(random, shape, dtype)
    while own_memory and layout.overlaps:
        layout = draw_layout(random, shape, dtype)
    needs_grad = random.random() < grad
    return Operand(
        name,
        shape,
        dtype,
        random.choice(kinds),
        random.randrange(10**6),
        layout,
        needs_grad,
        through_copy and random.random() < 0.9,
        inference=not needs_grad and random.random() < 0.04,
    )


# ---- layouts -------------------------------------------------------------------------------------


def _contiguous(random: Random, shape: Shape, dtype: str) -> Layout:
    return Layout("contiguous", shape, "{b}")


def _permuted(random: Random, shape: Shape, dtype: str) -> Layout:
    order = list(range(len(shape)))
    random.shuffle(order)
    base = [0] * len(shape)
    for position, dim in enumerate(order):
        base[dim] = shape[position]
    return Layout("permuted", tuple(base), f"{{b}}.permute({tuple(order)})")


def _channels_last(random: Random, shape: Shape, dtype: str) -> Layout | None:
    if len(shape) not in (4, 5):
        return None
    base = (shape[0], *shape[2:], shape[1])
    order = (0, len(shape) - 1, *range(1, len(shape) - 1))
    return Layout("channels last", base, f"{{b}}.permute({order})")


def _stepped(random: Random, shape: Shape, dtype: str) -> Layout | None:
    if not shape:
        return None
    steps = [random.choice((1, 1, 2, 3)) for _ in shape]
    starts = [random.choice((0, 0, 1, 2)) for _ in shape]
    base = tuple(
        start + step * size for size, step, start in zip(shape, steps, starts, strict=True)
    )
    slices = ", ".join(
        f"{start}:{start + step * size}:{step}"
        for size, step, start in zip(shape, steps, starts, strict=True)
    )
    return Layout("stepped", base, f"{{b}}[{slices}]")


def _stepped_and_permuted(random: Random, shape: Shape, dtype: str) -> Layout | None:
    outer = _permuted(random, shape, dtype)
    inner = _stepped(random, outer.base, dtype)
    if inner is None:
        return None
    return Layout("stepped, permuted", inner.base, outer.view.format(b=inner.view))


def _narrowed(random: Random, shape: Shape, dtype: str) -> Layout:
    kind = random.choice(("first", "unbound", "last"))
    if kind == "first":
        return Layout("selected first", (3, *shape), "{b}[1]")
    if kind == "unbound":  # several views at once, which autograd lets nobody write to
        return Layout("unbound", (3, *shape), "{b}.unbind(0)[1]")
    return Layout("selected last", (*shape, 3), "{b}[..., 2]")


def _misaligned(random: Random, shape: Shape, dtype: str) -> Layout:
    first = random.choice((1, 2, 3, 5, 7, 13))
    return Layout("offset", (math.prod(shape) + first,), f"{{b}}[{first}:].view({shape})")


def _expanded(random: Random, shape: Shape, dtype: str) -> Layout:
    base = tuple(1 if random.random() < 0.5 else size for size in shape)
    view = f"{{b}}.expand({shape})"
    return Layout("expanded", base, view, overlaps=math.prod(base) < math.prod(shape))


def _strided(random: Random, shape: Shape, dtype: str) -> Layout | None:
    if math.prod(shape) == 0:
        return None
    strides = tuple(random.choice((0, 1, 1, 2, 3, 7)) for _ in shape)
    first = random.choice((0, 0, 1, 3))
    places = np.array([first])
    for size, stride in zip(shape, strides, strict=True):
        places = (places[:, None] + np.arange(size) * stride).reshape(-1)
    base = (int(places.max()) + 1,)
    overlaps = len(np.unique(places)) < len(places)
    view = f"{{b}}.as_strided({shape}, {strides}, {first})"
    return Layout("as_strided", base, view, overlaps=overlaps)


def _negative(random: Random, shape: Shape, dtype: str) -> Layout:
    inner = random.choice((_contiguous, _permuted, _stepped, _misaligned))(random, shape, dtype)
    if inner is None:
        inner = _contiguous(random, shape, dtype)
    name = f"negative bit, {inner.name}"
    if dtype in COMPLEX and random.random() < 0.7:
        return Layout(name, inner.base, f"{inner.view}.conj().imag", complex_base=True)
    return Layout(name, inner.base, f"torch._neg_view({inner.view})")


def _real(random: Random, shape: Shape, dtype: str) -> Layout | None:
    if dtype not in COMPLEX:
        return None
    part = random.choice(("real", "imag"))
    return Layout(f"{part} part", shape, f"{{b}}.{part}", complex_base=True)


_LAYOUTS = (
    _contiguous,
    _contiguous,
    _permuted,
    _channels_last,
    _stepped,
    _stepped_and_permuted,
    _narrowed,
    _misaligned,
    _expanded,
    _strided,
    _negative,
    _negative,
    _real,
)
