"""Calls of the public functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from random import Random

import torch
from torch import Tensor

from fused_dropout import functional, reference
from fused_dropout._core import extension
from fused_dropout._tools.table import ops

from . import arguments as pools
from . import from_table
from .call import Call, Oracle, Tensors
from .draft import Draft
from .operands import DTYPES, Shape, draw_operand, draw_shape

SPECIAL = ("normal", "normal", "special", "denormal")
EXTREME = (*SPECIAL, "extreme")


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


def _settle(draft: Draft, random: Random, p: float, training: bool, inplace: bool = False) -> None:
    """What follows from the arguments that all functions of the dropout family have."""
    first = draft.operands[0]
    empty = math.prod(first.shape) == 0
    draft.drawn = training and not empty and 0.0 < reference.keep_rate(p) < 1.0
    draft.may_alias = inplace or not training or empty or p == 0
    draft.writes = first.name if inplace else None
    draft.format_of = None if inplace or not training else first.name
    draft.add_source(random)


def _draw_input(
    draft: Draft, random: Random, name: str, shape: Shape, kinds: tuple[str, ...], inplace: bool
) -> None:
    operand = draw_operand(
        random, name, shape, random.choice(DTYPES), kinds=kinds, through_copy=inplace,
        own_memory=inplace and random.random() < 0.95,
    )  # fmt: skip
    draft.add_operand(operand)


def _draw_broadcast_dims(random: Random, shape: tuple[int, ...]) -> dict[str, object]:
    """An argument that shares masks, or none."""
    count = len(shape)
    drawn = [d for d in range(count) if random.random() < 0.25]
    if not drawn:
        return {}
    signed = [d - count if random.random() < 0.3 else d for d in drawn]
    random.shuffle(signed)
    return {"broadcast_dims": tuple(signed)}


def _dropout_family(random: Random, name: str) -> Draft:
    draft = Draft(name)
    inplace = random.random() < 0.3
    alpha = name in ("alpha_dropout", "feature_alpha_dropout")
    dims = {"dropout1d": (2, 3), "dropout2d": (2, 3, 4, 4, 5), "dropout3d": (1, 2, 4, 5, 5, 6),
            "feature_alpha_dropout": (2, 3, 4), "locked_dropout": (2, 3, 3, 4)}  # fmt: skip
    shape = draw_shape(random, random.choice(dims[name]) if name in dims else None)
    _draw_input(draft, random, "input", shape, SPECIAL if alpha else EXTREME, inplace)
    p = draft.add_p(random)
    training = draft.add_flag(random, "training", 0.9)
    draft.arguments["inplace"] = repr(inplace)
    options: dict[str, object] = {}
    paper = False
    if name == "dropout":
        options = _draw_broadcast_dims(random, shape)
        paper = random.random() < 0.2
        options["convention"] = "paper" if paper else "inverted"
        draft.spoilable = ("broadcast_dims",)
    elif name == "locked_dropout":
        options["batch_first"] = random.random() < 0.5
    draft.arguments.update({key: repr(value) for key, value in options.items()})
    _settle(draft, random, p, training, inplace)
    if not training and paper and reference.keep_rate(p) != 1:
        draft.may_alias = inplace
    function = getattr(reference, name)
    q = reference.keep_rate(p)

    def written_out(tensors: Tensors) -> tuple[Tensor]:
        x = tensors["input"]
        if not training or x.numel() == 0:
            return (x * q if paper and not training else x * 1,)
        if alpha and p == 0:
            return (x * 1,)
        return (function(x, p, seed=draft.seed, offset=draft.offset, **options),)

    linear = None if alpha else "input"
    draft.oracle = Oracle(written_out, not alpha, linear, ("input",))
    if any(o.grad and o.kind != "normal" for o in draft.operands) and (alpha or inplace):
        draft.oracle = Oracle(written_out, not alpha)
    return draft


def _drop_path_family(random: Random, name: str) -> Draft:
    draft = Draft(name)
    adds, deep = name == "drop_path_add", name == "stochastic_depth"
    shape = draw_shape(random, random.choice((1, 2, 3, 4, 5)))
    kinds = ("normal",) if adds else EXTREME
    _draw_input(draft, random, "input" if deep else "x", shape, kinds, False)
    if adds:
        dtype = draft.operands[0].dtype
        draft.add_operand(draw_operand(random, "branch", shape, dtype))
    p = draft.add_p(random, "p" if deep else "drop_prob")
    training = draft.add_flag(random, "training", 0.9)
    mode, by_keep = random.choice(("batch", "row")) if deep else "row", True
    if deep:
        draft.arguments["mode"] = repr(mode)
    else:
        by_keep = draft.add_flag(random, "scale_by_keep", 0.8)
    _settle(draft, random, p, training)
    draft.format_of = None if adds else draft.format_of
    shared = range(0 if mode == "batch" else 1, len(shape))

    def written_out(tensors: Tensors) -> tuple[Tensor]:
        x = tensors["branch" if adds else draft.operands[0].name]
        if training and p > 0 and x.numel() > 0:
            convention = "inverted" if by_keep else "paper"
            x = reference.dropout(
                x, p, broadcast_dims=shared, seed=draft.seed, offset=draft.offset,
                convention=convention,
            )  # fmt: skip
        return (tensors["x"] + x if adds else x * 1,)

    operands = tuple(operand.name for operand in draft.operands)
    draft.oracle = Oracle(written_out, not adds, None if adds else operands[0], operands)
    return draft


def _drop_block(random: Random, name: str) -> Draft:
    draft = Draft(name)
    dims = int(name[-2])
    inplace = random.random() < 0.3
    shape = draw_shape(random, dims + 2)
    _draw_input(draft, random, "input", shape, EXTREME, inplace)
    p = draft.add_p(random)
    sides = tuple(random.choice((1, 2, 3, 3, 4, 7, 200)) for _ in range(dims))
    block: int | tuple[int, ...] = sides if random.random() < 0.4 else sides[0]
    eps = random.choice((1e-6, 1e-6, 0.0, 1.0))
    options = {
        "normalize": random.choice(("batch", "sample", "none")),
        "share_channels": random.random() < 0.3,
        "gamma": random.choice(("paper", "exact")),
        "gamma_scale": random.choice((1.0, 1.0, 1, 0, 0.3, 50)),
        "with_noise": random.random() < 0.2,
    }
    draft.arguments.update(block_size=repr(block), inplace=repr(inplace), eps=repr(eps))
    draft.arguments.update({key: repr(value) for key, value in options.items()})
    training = draft.add_flag(random, "training", 0.9)
    _settle(draft, random, p, training, inplace)
    # p is the rate of elements; that of the seeds, of 32 digits, may be below 1 where p is 1, and 1
    # where gamma_scale is large.
    certain = p in (0, 1) or options["gamma_scale"] > 1
    draft.drawn = training and not certain and math.prod(shape) > 0
    draft.twin = "generator" in draft.arguments or bool(draft.seeding)

    def written_out(tensors: Tensors) -> tuple[Tensor]:
        x = tensors["input"]
        if not training or p == 0 or x.numel() == 0:
            return (x * 1,)
        return (
            reference.drop_block(x, p, block, eps, seed=draft.seed, offset=draft.offset, **options),
        )

    plain = all(operand.kind == "normal" for operand in draft.operands) and eps > 0
    differentiable = ("input",) if plain or not inplace else ()
    linear = None if options["with_noise"] else "input"
    draft.oracle = Oracle(written_out, True, linear, differentiable)
    return draft


def _gaussian_dropout(random: Random, name: str) -> Draft:
    draft = Draft(name)
    inplace = random.random() < 0.3
    kinds = ("normal", "normal", "denormal", "special")
    _draw_input(draft, random, "input", draw_shape(random), kinds, inplace)
    p = draft.add_p(random)
    training = draft.add_flag(random, "training", 0.9)
    draft.arguments["inplace"] = repr(inplace)
    _settle(draft, random, p, training, inplace)
    draft.drawn = training and p > 0 and math.prod(draft.operands[0].shape) > 0
    draft.twin = draft.drawn and ("generator" in draft.arguments or bool(draft.seeding))
    if p == 1:
        draft.expect, draft.names = "error", ("p",)
        return draft

    def written_out(tensors: Tensors) -> tuple[Tensor]:
        x = tensors["input"]
        if not training or p == 0 or x.numel() == 0:
            return (x * 1,)
        return (reference.gaussian_dropout(x, p, seed=draft.seed, offset=draft.offset),)

    plain = draft.operands[0].kind == "normal"
    linear = None if inplace else "input"
    draft.oracle = Oracle(written_out, False, linear, ("input",) if plain else ())
    return draft


def _gaussian_noise(random: Random, name: str) -> Draft:
    draft = Draft(name)
    shape, dtype = draw_shape(random), random.choice(DTYPES)
    draft.add_operand(draw_operand(random, "mean", shape, dtype, kinds=SPECIAL))
    draft.add_operand(
        draw_operand(random, "variance", shape, dtype, kinds=("positive", "positive"))
    )
    eps = random.choice((1e-8, 0.0, 1.0))
    draft.arguments["eps"] = repr(eps)
    draft.drawn = math.prod(shape) > 0
    draft.format_of = "mean"
    draft.add_source(random)

    def written_out(tensors: Tensors) -> tuple[Tensor]:
        mean, variance = tensors["mean"], tensors["variance"]
        if mean.numel() == 0:
            return (mean + variance,)
        state = {"seed": draft.seed, "offset": draft.offset}
        return (reference.gaussian_noise(mean, variance, eps=eps, **state),)

    draft.oracle = Oracle(written_out, differentiable=("mean", "variance"))
    # The negative bit makes positive variances negative, whose root is NaN.
    if "negative" in draft.operands[1].layout.name or "imag" in draft.operands[1].layout.name:
        draft.oracle = Oracle(written_out)
    return draft


def logistic_ulps(temperature: float) -> float:
    """Units in the last place that a rounded logit of up to 20 moves logistic(logit / temperature).

    Of logits p and u the latter is below 17, and the operands' normal numbers make the rest.
    """
    return 20 / temperature


def _concrete_dropout(random: Random, name: str) -> Draft:
    draft = Draft(name)
    shape = draw_shape(random)
    _draw_input(draft, random, "input", shape, ("normal",), False)
    dtype = draft.operands[0].dtype
    logit_shape = random.choice(((), (1,), (1, 1), (1, 1, 1)))
    logit_dtype = dtype if random.random() < 0.7 else random.choice(DTYPES)
    draft.add_operand(draw_operand(random, "logit_p", logit_shape, logit_dtype))
    temperature = random.choice((0.1, 0.1, 0.7, 2, 1e6))
    draft.arguments["temperature"] = repr(temperature)
    options = _draw_broadcast_dims(random, shape)
    draft.arguments.update({key: repr(value) for key, value in options.items()})
    draft.spoilable = ("broadcast_dims",)
    training = draft.add_flag(random, "training", 0.9)
    draft.drawn = training and math.prod(shape) > 0
    draft.may_alias = not draft.drawn
    draft.format_of = "input" if training else None
    draft.add_source(random)

    def written_out(tensors: Tensors) -> tuple[Tensor]:
        x, logit_p = tensors["input"], tensors["logit_p"]
        if not training or x.numel() == 0:
            return (x * 1,)
        # The operator computes in float32 at least, and so must what it is compared to: the
        # quotient by a small temperature is sharp.
        wide = x if x.dtype == torch.float64 else x.float()
        state = {"seed": draft.seed, "offset": draft.offset, **options}
        out = reference.concrete_dropout(wide, logit_p.to(wide.dtype), temperature, **state)
        return (out.to(x.dtype),)

    draft.oracle = Oracle(
        written_out,
        differentiable=("input", "logit_p") if draft.drawn else ("input",),
        gradient_sums=math.prod(shape),
        extra_ulps=logistic_ulps(temperature),
    )
    return draft


def _bias_act_dropout_add(random: Random, name: str) -> Draft:
    draft = Draft(name)
    shape, dtype = draw_shape(random), random.choice(DTYPES)
    activation = random.choice(("none", "relu", "gelu", "gelu_tanh", "silu"))
    kinds = ("normal", "normal", "special") if activation == "none" else ("normal",)
    draft.add_operand(draw_operand(random, "input", shape, dtype, kinds=kinds))
    if shape and random.random() < 0.6:
        draft.add_operand(draw_operand(random, "bias", shape[-1:], dtype))
    if random.random() < 0.6:
        draft.add_operand(draw_operand(random, "residual", shape, dtype))
    draft.optional = ("bias", "residual")
    p = draft.add_p(random)
    convention = random.choice(("inverted", "paper"))
    draft.arguments.update(activation=repr(activation), convention=repr(convention))
    training = draft.add_flag(random, "training", 0.8)
    _settle(draft, random, p, training)
    draft.may_alias = False

    def written_out(tensors: Tensors) -> tuple[Tensor]:
        return (
            reference.bias_act_dropout_add(
                tensors["input"], tensors.get("bias"), tensors.get("residual"), p, activation,
                training, seed=draft.seed, offset=draft.offset, convention=convention,
            ),
        )  # fmt: skip

    operands = tuple(operand.name for operand in draft.operands)
    plain = all(operand.kind == "normal" for operand in draft.operands)
    sums = math.prod(shape[:-1]) if "bias" in operands else 1
    draft.oracle = Oracle(written_out, False, None, operands if plain else (), gradient_sums=sums)
    return draft


def _add_linear_operands(draft: Draft, random: Random) -> int:
    """Input, weight and perhaps a bias. The most terms of a sum in the layer or its gradients."""
    dtype = random.choice(DTYPES)
    leading = draw_shape(random, random.choice((0, 1, 1, 2, 2, 3)), most=24)
    ins = random.choice((0, 1, 2, 7, 31, 64, 127, 128, 129, 257))
    outs = random.choice((0, 1, 2, 3, 7, 8, 9, 17, 33))
    draft.add_operand(draw_operand(random, "input", (*leading, ins), dtype))
    draft.add_operand(draw_operand(random, "weight", (outs, ins), dtype))
    if random.random() < 0.7:
        draft.add_operand(draw_operand(random, "bias", (outs,), dtype))
    draft.optional = ("bias",)
    return ins + outs + math.prod(leading) + 1


def _dropconnect_linear(random: Random, name: str) -> Draft:
    draft = Draft(name)
    terms = _add_linear_operands(draft, random)
    p = draft.add_p(random)
    mask = random.choice(("row", "example", "batch", 1, 2, 3, 2**62, 2**70))
    convention = random.choice(("inverted", "paper"))
    storage = random.choice(("auto", "regenerate", "packed"))
    masks_bias = random.random() < 0.8
    draft.arguments.update(
        mask=repr(mask), convention=repr(convention), mask_storage=repr(storage),
        mask_bias=repr(masks_bias),
    )  # fmt: skip
    training = draft.add_flag(random, "training", 0.9)
    _settle(draft, random, p, training)
    draft.format_of = None
    # A layer without examples or outputs still checks its source of random numbers.
    draft.drawn = training and reference.keep_rate(p) < 1.0
    draft.twin = "generator" in draft.arguments or bool(draft.seeding)  # a bias has its own mask

    def written_out(tensors: Tensors) -> tuple[Tensor]:
        x, weight, bias = tensors["input"], tensors["weight"], tensors.get("bias")
        if not training or reference.keep_rate(p) == 1.0:
            scaling = "inverted" if training else convention
            evaluated = reference.dropconnect_linear(
                x, weight, bias, p, False, seed=0, convention=scaling, mask_bias=masks_bias
            )
            return (evaluated,)
        share = min(mask, 2**62) if isinstance(mask, int) else mask
        state = {"seed": draft.seed, "offset": draft.offset}
        return (
            reference.dropconnect_linear(
                x, weight, bias, p, mask=share, convention=convention, mask_bias=masks_bias, **state
            ),
        )

    operands = tuple(operand.name for operand in draft.operands)
    draft.oracle = Oracle(written_out, False, None, operands, sums=terms, gradient_sums=terms)
    return draft


def as_in_sums(tensor: Tensor) -> Tensor:
    """In the dtype that sums are kept in."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _dropconnect_inference(random: Random, name: str) -> Draft:
    """The moments, and the Gaussian average."""
    draft = Draft(name)
    terms = _add_linear_operands(draft, random)
    p = draft.add_p(random)
    options: dict[str, object] = {
        "convention": random.choice(("inverted", "paper")),
        "mask_bias": random.random() < 0.7,
    }
    draws = name == "dropconnect_gaussian"
    if draws:
        options.update(activation="tanh", samples=random.choice((1, 3, 40)))
    draft.arguments.update({key: repr(value) for key, value in options.items()})
    empty = any(math.prod(operand.shape) == 0 for operand in draft.operands)
    draft.drawn = draws and not empty and 0.0 < reference.keep_rate(p) < 1.0
    draft.format_of = None
    if draws:
        draft.add_source(random)
        draft.twin = "generator" in draft.arguments or bool(draft.seeding)
    else:
        draft.twin = True

    def written_out(tensors: Tensors) -> tuple[Tensor, ...]:
        operands = tensors["input"], tensors["weight"], tensors.get("bias")
        if not draws:
            wide = (None if tensor is None else as_in_sums(tensor) for tensor in operands)
            return reference.dropconnect_moments(*wide, p, **options)  # type: ignore[arg-type]
        state = {"seed": draft.seed, "offset": draft.offset}
        known = {**options, "activation": torch.tanh, **state}
        return (reference.dropconnect_gaussian(*operands, p, **known),)  # type: ignore[arg-type]

    # The slope of a root of a small variance is as large as it likes.
    draft.oracle = Oracle(written_out, sums=16 * terms)
    return draft


def _expected_relu(random: Random, name: str) -> Draft:
    draft = Draft(name, drawn=False)
    shape, dtype = draw_shape(random), random.choice(DTYPES)
    draft.add_operand(draw_operand(random, "mean", shape, dtype))
    draft.add_operand(draw_operand(random, "variance", shape, dtype, kinds=("positive",)))
    draft.twin = True

    def written_out(tensors: Tensors) -> tuple[Tensor]:
        return (reference.expected_relu(tensors["mean"], tensors["variance"]),)

    if not any(word in draft.operands[1].layout.name for word in ("negative", "imag")):
        draft.oracle = Oracle(written_out, sums=4)
    return draft


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
_FAMILIES: dict[Callable[[Random, str], Draft], tuple[str, ...]] = {
    _dropout_family: (
        "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout",
        "feature_alpha_dropout", "locked_dropout",
    ),
    _drop_path_family: ("drop_path", "drop_path_add", "stochastic_depth"),
    _drop_block: ("drop_block1d", "drop_block2d", "drop_block3d"),
    _gaussian_dropout: ("gaussian_dropout",),
    _gaussian_noise: ("gaussian_noise",),
    _concrete_dropout: ("concrete_dropout",),
    _bias_act_dropout_add: ("bias_act_dropout_add",),
    _dropconnect_linear: ("dropconnect_linear",),
    _dropconnect_inference: ("dropconnect_moments", "dropconnect_gaussian"),
    _expected_relu: ("expected_relu",),
    _linear_drop_rates: ("linear_drop_rates",),
    _mask: TOP_LEVEL,
}  # fmt: skip
RECIPES = {name: recipe for recipe, names in _FAMILIES.items() for name in names}


@cache
def names() -> tuple[str, ...]:
    """The functions of this file and of the table."""
    return tuple(sorted({*RECIPES, *map(from_table.name_of, ops())}))


#: Takes indices, which are no operands here: tests/ops has wrong calls of it.
WITH_TESTS_OF_THEIR_OWN = {"embedding_dropout"}


def missing() -> list[str]:
    """Public functions that are never called."""
    return sorted({*functional.__all__} - {*names()} - WITH_TESTS_OF_THEIR_OWN)
