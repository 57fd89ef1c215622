"""What a row of the table is: an op, its modules, its operators; and what several rows share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fused_dropout._core import extension
from fused_dropout._core.rng import make_rng_state

Function = Callable[..., Tensor]  # operands, settings and seed= in; one tensor out
Case = tuple[tuple[str, Any], ...]  # keyword arguments
Shape = tuple[int, ...]
Operands = Callable[[Shape, torch.Generator], list[Tensor]]
Arguments = tuple[Any, ...]  # of an operator

SHAPES: tuple[Shape, ...] = ((1,), (129,), (3, 5, 31), (2, 7, 9, 11), (4, 40_000))
MAPS: tuple[Shape, ...] = ((1, 1, 1, 1), (2, 3, 5, 7), (3, 16, 14, 9))
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

# What the ops are held to; Op.properties says which op to which of them.
PROPERTIES = {
    "dtypes": "float32, bfloat16, float16 and float64, each as close to the reference as torch is",
    "strides": "any strides, memory format and storage offset: the bits of the dense call",
    "in place": "`inplace=True` writes the bits of the call that is not in place",
    "gradient": "backward; double backward; gradients of a batch of directions at once",
    "forward mode": "tangents of every operand, forward over reverse and reverse over forward",
    "torch.func": "grad, jvp, jacrev, jacfwd and hessian",
    "vmap": "over every operand, random states and gradients, with each `randomness=`",
    "random sources": "`generator=`, `seed=`, `rng_state=`, `torch.manual_seed`, checkpointing",
    "threads": "the same bits for any number of CPU threads; of `dropconnect_linear` where few "
    "rows share a mask, of results of `dropconnect_gaussian` with few rows and of convolutions "
    "where few positions share a mask, else as close as rounding allows",
    "compile": "torch.compile to one graph, with gradients, and fresh masks in every call",
    "make_fx": "traces with gradients, in each tracing mode",
    "export": "torch.export in training mode, strict or not, with gradients",
    "fx": "torch.fx.symbolic_trace; the op is one node",
    "fake and meta": "shapes, strides and dtypes without data",
    "CPU = CUDA": "the CPU's and the GPU's masks are equal, results as close as rounding allows",
    "AOTInductor": "the module compiled ahead of time in training mode",
    "DDP and FSDP2": "the module trains in two processes as in one",
}


@dataclass(frozen=True)
class Layer:
    """A module of an op: `kind(**arguments)`, called with operands of `shapes`."""

    kind: type[torch.nn.Module]
    arguments: Case
    shapes: tuple[Shape, ...]

    @property
    def name(self) -> str:
        return self.kind.__name__

    def build(self) -> torch.nn.Module:
        """A new module in training mode, on torch's default device and in its default dtype."""
        return self.kind(**dict(self.arguments))

    def has_parameters(self) -> bool:
        """Whether there is anything in the module for an optimiser."""
        with torch.device("meta"):
            return any(True for _ in self.build().parameters())


@dataclass(frozen=True)
class Op:
    """A function, its reference, and what to call both with.

    Attributes:
        function: takes operands, settings and one of `generator=`, `seed=` and `rng_state=`; of
            ops without operands only `seed=`.
        reference: takes the same operands and settings, and `seed=`.
        settings, shapes: `fused-dropout verify` calls the op with all of them.
        small: a shape and settings for tests that are slow.
        operands: draws the operands for a shape in float64; all of them get gradients.
        operand_names: what the function calls them; () for ops that make noise out of nothing.
        inplace: whether the function takes `inplace=`.
        idle: settings with which nothing is drawn.
        runs_module: whether it calls a module that it is given, which torch.fx then records.
        form_of: the row whose code it runs in another number of dimensions; the slowest tests leave
            such a row out.
        elementwise: whether an output element depends on one element of each operand.
        layers: the modules that run the op.
        operators: its operators in `torch.ops.fused_dropout`.
    """

    name: str
    function: Function
    reference: Function
    settings: tuple[Case, ...]
    shapes: tuple[Shape, ...] = SHAPES
    small: tuple[Shape, Case] = ((3, 4), (("p", 0.5),))
    operands: Operands = lambda shape, draw: [normal(shape, draw)]
    operand_names: tuple[str, ...] = ("input",)
    inplace: bool = False
    idle: tuple[Case, ...] = ()
    runs_module: bool = False
    form_of: str = ""
    elementwise: bool = True
    layers: tuple[Layer, ...] = ()
    operators: tuple[str, ...] = ()

    @property
    def properties(self) -> frozenset[str]:
        """Which of PROPERTIES the op is held to."""
        held = {"threads", "compile", "CPU = CUDA"}
        if self.operand_names:
            held |= {"dtypes", "strides", "gradient", "forward mode", "torch.func", "vmap"}
            held |= {"random sources", "make_fx", "export", "fake and meta"}
            if not self.runs_module:
                held.add("fx")
        if self.inplace:
            held.add("in place")
        if self.layers:
            held.add("AOTInductor")
        if any(layer.has_parameters() for layer in self.layers):
            held.add("DDP and FSDP2")
        return frozenset(held)


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        name: the operator is `torch.ops.fused_dropout.<name>`.
        calls: draws the arguments of some calls, on torch's default device and in its default
            dtype. The float32 tensors among them may all be made float64.
        differentiable: the tensor arguments that it gives gradients of. The others with floating
            elements either have no influence on the result, or asking for their gradient raises.
    """

    name: str
    calls: Callable[[], list[Arguments]]
    differentiable: tuple[str, ...] = ()

    @property
    def overload(self) -> Any:
        """What torch calls the operator's only overload."""
        return getattr(extension.operators(), self.name).default

    @property
    def in_place(self) -> bool:
        return self.name.endswith("_")


def normal(shape: Shape, draw: torch.Generator) -> Tensor:
    """Standard normals in float64."""
    return torch.randn(shape, generator=draw, dtype=torch.float64, device=draw.device)


def case(**keywords: Any) -> Case:
    """Keyword arguments that can be a key."""
    return tuple(keywords.items())


def normals(*shapes: Shape) -> list[Tensor]:
    """Operands of an operator: standard normals on torch's default device."""
    device = torch.get_default_device()
    draw = torch.Generator(device).manual_seed(0)
    return [torch.randn(shape, generator=draw, device=device) for shape in shapes]


def state() -> Tensor:
    """The random state of an operator's call."""
    return make_rng_state(1, 2)


RATES = tuple((("p", p),) for p in (0.5, 0.1, 0.3))
IDLE = (case(p=0.0), case(p=1.0))
WITH_BATCH = tuple(shape for shape in SHAPES if len(shape) > 1)
