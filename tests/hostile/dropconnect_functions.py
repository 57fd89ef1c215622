"""Calls of DropConnect's functions, in training and by its moments."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import torch
from torch import Tensor

from fused_dropout import reference

from .call import Oracle, Tensors
from .draft import Draft
from .operands import DTYPES, draw_operand, draw_shape


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
    draft.settle(random, p, training)
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


FAMILIES: dict[Callable[[Random, str], Draft], tuple[str, ...]] = {
    _dropconnect_linear: ("dropconnect_linear",),
    _dropconnect_inference: ("dropconnect_moments", "dropconnect_gaussian"),
    _expected_relu: ("expected_relu",),
}
