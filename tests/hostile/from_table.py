"""Calls of whatever this folder has no rules for: the table of ops says how they are made.

functions.py, modules.py and operators.py know the arguments of some ops well. An op that they do
not know is called with the operands and settings of its row, and its reference knows the result.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from random import Random
from typing import Any

import torch
from torch import Tensor

from fused_dropout import functional
from fused_dropout._tools.table import Layer, Op, Operator, layers, operators, ops

from . import arguments as pools
from .call import Call, Oracle, Tensors
from .draft import Draft
from .operands import DTYPES, Operand, Shape, draw_operand

RATES = ("p", "drop_prob")
# Units in the last place for an op whose slopes nobody states; a wrong mask is off by far more.
STEEP_ULPS = 256.0
LARGEST = 3000  # elements of an operand


# ---- functions -----------------------------------------------------------------------------------


def name_of(op: Op) -> str:
    """What the op's function is called."""
    name: str = _function(op).__name__
    return name


def rows_of(name: str) -> list[Op]:
    """The rows of the function with this name."""
    return [op for op in ops() if name_of(op) == name]


def draft_of(random: Random, op: Op) -> Draft:
    """A good call of the op's function."""
    draft = Draft(name_of(op))
    parameters = inspect.signature(_function(op)).parameters
    small = random.random() < 0.3
    settings = dict(op.small[1] if small else random.choice(op.settings))
    inplace = op.inplace and random.random() < 0.3
    shape = _shape(random, op.small[0] if small else random.choice(op.shapes))
    for operand in _operands(random, op, shape, inplace):
        draft.add_operand(operand)
    draft.optional = tuple(name for name, it in parameters.items() if it.default is None)
    for name, value in settings.items():
        if name in RATES:
            settings[name] = draft.add_p(random, name)
            draft.drawn = 2**-16 < settings[name] < 1 - 2**-16
            if not draft.drawn:  # the op may refuse it
                draft.expect, draft.names = "either", (name,)
        else:
            draft.arguments[name] = repr(value)
    for name, value in getattr(op.function, "keywords", {}).items():  # of a partial
        draft.arguments[name] = repr(value)
        if callable(value):  # one of torch's; it or the drawing may refuse an operand first
            own = value.__name__
            draft.arguments[name] = f"torch.{own}"
            draft.names += (name, own, f"{own}_cpu", "generator")
    if "training" in parameters:
        draft.arguments["training"] = "True"
    if op.inplace:
        draft.arguments["inplace"] = repr(inplace)
    draft.may_alias = inplace or not draft.drawn
    draft.writes = op.operand_names[0] if inplace else None
    _add_source(random, draft, op)
    if not draft.drawn:  # what the op makes of such a rate is its own
        return draft
    sizes = [math.prod(operand.shape) for operand in draft.operands]
    draft.oracle = Oracle(
        _written_out(op, draft, settings),
        differentiable=op.operand_names,
        sums=0 if op.elementwise else sum(sizes),
        gradient_sums=sum(sizes),
        extra_ulps=STEEP_ULPS,
    )
    return draft


def _function(op: Op) -> Callable[..., Tensor]:
    found: Callable[..., Tensor] = getattr(op.function, "func", op.function)  # past a partial
    return found


def _shape(random: Random, shape: Shape) -> Shape:
    """This one or one of as many dimensions, none of them empty."""
    if random.random() < 0.6:
        shape = tuple(random.choice((size, 1, 2, 3, 5, 17, 33, 129)) for size in shape)
    while math.prod(shape) > LARGEST:
        widest = shape.index(max(shape))
        shape = tuple(size // 2 if dim == widest else size for dim, size in enumerate(shape))
    return shape


def _operands(random: Random, op: Op, shape: Shape, inplace: bool) -> list[Operand]:
    dtype = random.choice(DTYPES)
    samples = op.operands(shape, torch.Generator().manual_seed(random.randrange(2**32)))
    found = []
    for name, sample in zip(op.operand_names, samples, strict=True):
        positive = bool((sample > 0).all())  # and so may every other sample be, by intention
        written = inplace and not found
        while True:
            operand = draw_operand(
                random, name, tuple(sample.shape), dtype, through_copy=written, own_memory=written,
                kinds=("positive" if positive else "normal",),
            )  # fmt: skip
            if not positive or not {"negative", "imag", "real"} & set(operand.layout.name.split()):
                break
        found.append(operand)
    return found


def _add_source(random: Random, draft: Draft, op: Op) -> None:
    if not op.operand_names:  # noise out of nothing takes a seed alone
        draft.seed = random.randrange(2**64)
        draft.arguments["seed"] = repr(draft.seed)
        return
    draft.add_source(random)
    unknown = draft.offset != 0 and not _takes_offset(op)
    draft.twin = "generator" in draft.arguments or bool(draft.seeding) or unknown


def _takes_offset(op: Op) -> bool:
    parameters = inspect.signature(op.reference).parameters.values()
    return any(it.name == "offset" or it.kind is it.VAR_KEYWORD for it in parameters)


def _written_out(
    op: Op, draft: Draft, settings: dict[str, Any]
) -> Callable[[Tensors], tuple[Tensor]]:
    def reference(tensors: Tensors) -> tuple[Tensor]:
        operands = [tensors[name] for name in op.operand_names]
        state = {"seed": draft.seed}
        if draft.offset and not draft.twin:
            state["offset"] = draft.offset
        result = op.reference(*operands, **settings, **state)
        # The noise of the reference is float64, whatever was asked for.
        return (result if operands or not result.is_floating_point() else result.float(),)

    return reference


# ---- modules -------------------------------------------------------------------------------------


class LayerRecipe:
    """How a module of the table is made; it must agree with its function where that is known."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.function = self._function()

    def _function(self) -> str:
        """Code of the same call without the module; "" if the module has arguments of its own."""
        (op,) = (op for op in ops() if self.layer in op.layers)
        parameters = inspect.signature(_function(op)).parameters
        arguments = dict(self.layer.arguments)
        own = not arguments.keys() <= parameters.keys() or "training" not in parameters
        if own or self.layer.has_parameters() or name_of(op) not in functional.__all__:
            return ""
        names = "xyz"[: len(self.layer.shapes)]
        given = [*names, *(f"{key}={{{key}}}" for key in arguments), "training={training}"]
        return f"F.{name_of(op)}({', '.join(given)})"

    def settings(self, random: Random) -> dict[str, str]:
        """Code of the constructor's arguments."""
        return {
            name: repr(random.uniform(0.01, 0.99) if name in RATES else value)
            for name, value in self.layer.arguments
        }

    def shapes(self, random: Random) -> tuple[Shape, ...]:
        """Those of the operands."""
        return self.layer.shapes

    def sizes(self, shape: Shape, dtype: str) -> dict[str, str]:
        """Code of the arguments that follow from the operands."""
        parameters = inspect.signature(self.layer.kind).parameters
        return {"dtype": f"torch.{dtype}"} if "dtype" in parameters else {}


def layer_named(name: str) -> Layer | None:
    """The first row of the module with this name."""
    return next((layer for layer in layers() if layer.name == name), None)


# ---- operators -----------------------------------------------------------------------------------


def operator_named(name: str) -> Operator | None:
    """The row of the operator with this name."""
    return next((row for row in operators() if row.name == name), None)


def operator_arguments(random: Random, row: Operator, call: Call) -> dict[str, str]:
    """Arguments of one of the row's calls, as code by name; the call gets the lines before it."""
    names = [argument.name for argument in row.overload._schema.arguments]
    number = random.randrange(len(row.calls()))
    given = [f"given_{name}" for name in names[: len(row.calls()[number])]]
    targets = f"[{', '.join(given)}]"
    call.setup += [
        "from fused_dropout._tools.table import operators",
        f"{targets} = next(r for r in operators() if r.name == {row.name!r}).calls()[{number}]",
    ]
    if random.random() < 0.3:
        wide = "v.double() if isinstance(v, torch.Tensor) and v.dtype == torch.float32 else v"
        call.setup.append(f"{targets} = [{wide} for v in {targets}]")
    code = dict(zip(names, given, strict=False))
    if "rng_state" in code and random.random() < 0.7:
        state, *_ = random.choice(pools.GOOD_STATES)
        call.setup.append(f"given_rng_state = {state}")
    return code
