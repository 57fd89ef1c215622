"""What the benchmark knows of an op: its operands, its peers, its floor, its typical problems."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from math import prod
from typing import Any

import torch
from torch import Tensor

from fused_dropout._tools.bench.harness import NotInstalled

Shape = tuple[int, ...]
Layer = Callable[..., Tensor]  # operands in, one tensor out
LayerAt = Callable[..., Layer]  # from p, and the options of a problem as keywords, to the layer
Operands = Callable[[Shape, torch.Generator], list[Tensor]]

# Forward of operands that require no gradients, so that no graph is recorded for a backward pass;
# total: forward of operands that do, and all gradients.
FORWARD, TOTAL = PHASES = ("forward", "total")
DTYPES = ("float32", "bfloat16", "float16", "float64")
COPY, DENSE = "copy_", "dense"
_FORMATS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
    "channels_last_3d": torch.channels_last_3d,
}


@dataclass(frozen=True)
class Typical:
    """A problem that people have; `options` are keywords of the layers."""

    shape: Shape
    memory_format: str = "contiguous"
    options: tuple[tuple[str, Any], ...] = ()


def one_normal(shape: Shape, draw: torch.Generator) -> list[Tensor]:
    """One operand of the problem's shape."""
    return [torch.randn(shape, generator=draw)]


@dataclass(frozen=True)
class BenchOp:
    """One op.

    Attributes:
        ours: makes our layer for a p.
        peers: makes the others' by name; `--compile` compiles the first of them.
        shape: of the default problem.
        sized: the shape with that many elements, a power of two.
        shapes: what `--sweep shape` measures.
        p, ps: the default, and what `--sweep p` measures; None and () where p is no setting.
        operands: draws the operands for a shape, in float32.
        output_shape: of the result, from the operands.
        phases: without TOTAL, there are no gradients.
        moved: the floor of a phase is a `copy_` of that many times the bytes of `shape` (what is
            read and what is written).
        floor: a layer that is the floor instead: the dense one.
        our_tensors, peer_tensors: memory that a call needs, in tensors of `elements`.
        elements: how many a problem has: those of its shape, where nothing else is said.
        quick: most elements of `shape` with `--quick`.
    """

    name: str
    ours: LayerAt
    peers: Mapping[str, LayerAt]
    shape: Shape
    sized: Callable[[int], Shape]
    shapes: tuple[Typical, ...] = ()
    p: float | None = 0.5
    ps: tuple[float, ...] = (0.1, 0.25, 0.3, 0.5, 0.75)
    dtypes: tuple[str, ...] = DTYPES
    operands: Operands = one_normal
    output_shape: Callable[[list[Tensor]], Shape] = lambda operands: tuple(operands[0].shape)
    phases: tuple[str, ...] = PHASES
    moved: Mapping[str, float] = field(default_factory=lambda: {FORWARD: 2, TOTAL: 4})
    floor: Layer | None = None
    our_tensors: int = 6
    peer_tensors: int = 8
    elements: Callable[[Typical], int] = lambda problem: prod(problem.shape)
    quick: int = 1 << 20

    @property
    def floor_name(self) -> str:
        return COPY if self.floor is None else DENSE

    @property
    def default(self) -> Typical:
        """The default problem."""
        return Typical(self.shape)


class Calls:
    """The same operands for every subject of a problem; its methods return what a phase times."""

    def __init__(
        self, op: BenchOp, shape: Shape, dtype: str, device: str, memory_format: str = "contiguous"
    ) -> None:
        draw = torch.Generator().manual_seed(0)
        form = {len(shape): _FORMATS[memory_format]}  # other operands stay contiguous

        def placed(tensor: Tensor) -> Tensor:
            to_form = form.get(tensor.dim(), torch.contiguous_format)
            return tensor.to(device, getattr(torch, dtype)).contiguous(memory_format=to_form)

        self.op = op
        self.shape = shape
        self.operands = [placed(tensor) for tensor in op.operands(shape, draw)]
        output_shape = op.output_shape(self.operands)
        self.grad = self.operands[0]
        if TOTAL in op.phases:
            self.grad = placed(torch.randn(output_shape, generator=draw))

    def of_layer(self, layer: Layer, phase: str) -> Callable[[], object]:
        """The forward pass, the backward pass alone, or both."""
        recorded = phase != FORWARD
        leaves = [tensor.detach().requires_grad_(recorded) for tensor in self.operands]
        if phase == FORWARD:
            return lambda: layer(*leaves)
        if phase == TOTAL:
            return lambda: torch.autograd.grad(layer(*leaves), leaves, self.grad, allow_unused=True)
        output = layer(*leaves)
        return lambda: torch.autograd.grad(output, leaves, self.grad, retain_graph=True)

    def of_floor(self, phase: str) -> Callable[[], object]:
        """The dense layer, or a `copy_` of the bytes that a pass must move, into a warm tensor."""
        if self.op.floor is not None:
            return self.of_layer(self.op.floor, phase)
        count = max(1, round(prod(self.shape) * self.op.moved[phase] / 2))
        source = self.operands[0].new_zeros(count)
        target = torch.zeros_like(source)
        return lambda: target.copy_(source)


def installed(package: str, module: str, function: str) -> Callable[..., Tensor]:
    """A function of another package; raises NotInstalled where it is not there."""
    try:
        found: Callable[..., Tensor] = getattr(import_module(module), function)
    except ImportError as error:
        raise NotInstalled(f"not installed: pip install {package}") from error
    return found


def in_powers(elements: int, *shares: int) -> Shape:
    """A shape with that many elements, a power of two, its exponent divided as the shares are."""
    exponent = elements.bit_length() - 1
    exponents = [exponent * share // sum(shares) for share in shares]
    exponents[0] += exponent - sum(exponents)
    return tuple(1 << part for part in exponents)


def shrunk(shape: Shape, most: int) -> Shape:
    """The shape with its longest sides halved until it has at most that many elements."""
    sides = list(shape)
    while prod(sides) > most and max(sides) > 1:
        longest = sides.index(max(sides))
        sides[longest] = -(-sides[longest] // 2)
    return tuple(sides)
