"""Calls of the functions that drop or change elements: dropout, drop path, DropBlock, noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import torch
from torch import Tensor

from fused_dropout import reference

from .call import Oracle, Tensors
from .draft import Draft
from .operands import DTYPES, Shape, draw_operand, draw_shape

SPECIAL = ("normal", "normal", "special", "denormal")
EXTREME = (*SPECIAL, "extreme")


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
    draft.settle(random, p, training, inplace)
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
    draft.settle(random, p, training)
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
    draft.settle(random, p, training, inplace)
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
    draft.settle(random, p, training, inplace)
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
    draft.settle(random, p, training)
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


FAMILIES: dict[Callable[[Random, str], Draft], tuple[str, ...]] = {
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
}  # fmt: skip
