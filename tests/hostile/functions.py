"""Calls of the public functions."""

from __future__ import annotations

from functools import cache
from random import Random

import torch
from torch import Tensor

from fused_dropout import functional, reference
from fused_dropout._core import extension
from fused_dropout._tools.table import ops

from . import arguments as pools
from . import dropconnect_functions, dropout_functions, from_table
from .call import Call, Oracle, Tensors
from .draft import Draft
from .operands import draw_shape


def draw_function(random: Random) -> Call:
    """A call of one of the functions, one in four of them spoilt."""
    name = random.choice(names())
    if name in RECIPES:
        draft = RECIPES[name](random, name)
    else:
        draft = from_table.draft_of(random, random.choice(from_table.rows_of(name)))
    return call_of(random, draft, name)


def call_of(random: Random, draft: Draft, name: str) -> Call:
    """The drafted call, perhaps spoilt, on the meta device, or inside a context."""
    place = "F" if name in functional.__all__ else "fused_dropout"
    draft.function = f"{place}.{name}"
    if draft.writes and draft.operands[0].layout.overlaps:
        wanted = draft.operands[0].layout.expectation_in_place
        draft.expect = wanted if draft.drawn and draft.expect == "value" else "either"
        draft.oracle, draft.twin = None, False
    if draft.operands:
        draft.add_contexts(random, extension.available_isas())
    if random.random() < 0.25:
        draft.spoil(random)
    elif draft.can_be_on_meta() and random.random() < 0.03:
        draft.on_meta()
    return draft.call(f"{place}.{name}".replace("F.", "functional."))


def _linear_drop_rates(random: Random, name: str) -> Draft:
    draft = Draft(name)
    draft.arguments.update(drop_rate=pools.draw_p(random), depth=repr(random.randrange(9)))
    draft.twin = True
    return draft


def _mask(random: Random, name: str) -> Draft:
    draft = Draft(name, drawn=False)
    shape = draw_shape(random)
    code = repr(shape[0]) if len(shape) == 1 and random.random() < 0.5 else repr(shape)
    draft.arguments["shape" if "mask" in name else "size"] = code
    draft.add_source(random, known=True)
    for other in ("rng_state", "generator"):
        draft.arguments.pop(other, None)
    draft.seed, draft.offset = random.randrange(2**64), random.randrange(-(2**63), 2**64)
    draft.arguments.update(seed=repr(draft.seed), offset=repr(draft.offset))
    draft.expect, draft.names = "value", ()
    if "mask" in name:
        p = float(pools.value_of(code_p := pools.draw_p(random)))  # type: ignore[arg-type]
        options = {"stream": random.randrange(128), "digits": random.randrange(1, 33)}
        draft.arguments.update({key: repr(value) for key, value in options.items()}, p=code_p)
        draft.spoilable = ("device",)

    def written_out(tensors: Tensors) -> tuple[Tensor]:
        state = {"seed": draft.seed, "offset": draft.offset}
        if "mask" not in name:
            noise = getattr(reference, name)(shape, **state)
            return (noise if draft.arguments["dtype"] == "torch.float64" else noise.float(),)
        kept = reference.mask(shape, p, **state, **options)
        return (kept if name == "mask" else packed(kept),)

    if "mask" not in name:
        draft.arguments["dtype"] = random.choice(("torch.float32", "torch.float64"))
        draft.spoilable = ("device",)
    draft.oracle = Oracle(written_out)
    return draft


def packed(kept: Tensor) -> Tensor:
    """The bools of the last dimension as words of 32 bits, the first of them lowest."""
    kept = kept.reshape(1) if kept.dim() == 0 else kept
    cols = kept.shape[-1]
    words = -(-cols // 32)
    padded = torch.nn.functional.pad(kept, (0, words * 32 - cols))
    places = 2 ** torch.arange(32, dtype=torch.int64)
    return (padded.view(*kept.shape[:-1], words, 32) * places).sum(-1).to(torch.uint32)


TOP_LEVEL = ("mask", "packed_mask", "uniform_noise", "normal_noise")
_FAMILIES = {
    **dropout_functions.FAMILIES,
    **dropconnect_functions.FAMILIES,
    _linear_drop_rates: ("linear_drop_rates",),
    _mask: TOP_LEVEL,
}
RECIPES = {name: recipe for recipe, names in _FAMILIES.items() for name in names}


@cache
def names() -> tuple[str, ...]:
    """The functions with recipes, and those of the table."""
    return tuple(sorted({*RECIPES, *map(from_table.name_of, ops())}))


#: Takes indices, which are no operands here: tests/ops has wrong calls of it.
WITH_TESTS_OF_THEIR_OWN = {"embedding_dropout"}


def missing() -> list[str]:
    """Public functions that are never called."""
    return sorted({*functional.__all__} - {*names()} - WITH_TESTS_OF_THEIR_OWN)
