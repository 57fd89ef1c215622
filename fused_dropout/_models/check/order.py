"""Mistakes in the order of layers, and functions that drop in evaluation."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from torch import nn

from fused_dropout._models.check.calls import Call
from fused_dropout._models.check.finding import Finding, place
from fused_dropout._models.check.functions import (
    ALPHA,
    ALPHA_CHANNELS,
    CHANNELS,
    ELEMENTS,
    NOISE,
    OTHER,
    STEPS,
)
from fused_dropout._models.check.rates import check_rate

_BATCH_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.LazyBatchNorm1d,
    nn.LazyBatchNorm2d,
    nn.LazyBatchNorm3d,
)
_SHAPES = (nn.Identity, nn.Flatten, nn.Unflatten)
_SHAPE_FUNCTIONS = (
    "clone",
    "contiguous",
    "flatten",
    "movedim",
    "permute",
    "reshape",
    "squeeze",
    "swapaxes",
    "transpose",
    "unflatten",
    "unsqueeze",
    "view",
    "view_as",
)
# Activations of which f(0) = 0: what was dropped stays 0. By the names of the functions.
_ZERO_KEEPING = {
    "celu": nn.CELU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    "leaky_relu": nn.LeakyReLU,
    "mish": nn.Mish,
    "prelu": nn.PReLU,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "selu": nn.SELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}
_NOT_SELU = {name: cls for name, cls in _ZERO_KEEPING.items() if name != "selu"}
_SOFTMAX = {"softmax": nn.Softmax, "log_softmax": nn.LogSoftmax}


def check_order(calls: Collection[Call], model: nn.Module) -> Iterator[Finding]:
    """Findings about what comes before what; ``calls`` in a mode in which dropout is not left out.

    ``model`` is in the mode in which the user has it.
    """
    for call in calls:
        dropped = _dropout_before(call)
        if call.module is None and call.dropping is not None and call.dropping.p is not None:
            p = call.dropping.p
            yield from check_rate(call.where, f"p={p:g} in {call.function}()", p)
        if dropped is not None:
            yield from _check_batch_norm(call, dropped, model)
            yield from _check_twice(call, dropped)
            yield from _check_softmax(call, dropped)
        yield from _check_alpha_dropout(call)


def check_functions(calls: Collection[Call]) -> Iterator[Finding]:
    """Findings about functions that drop; ``calls`` in evaluation mode."""
    for call in calls:
        if call.module is None and call.dropping is not None and call.dropping.on:
            yield Finding(
                "dropout-ignores-mode",
                call.where,
                f"{call.function}() drops in evaluation mode too: called without "
                "training=self.training, or by a dropout layer that the model does not hold (made "
                "in forward, or kept in a list), which eval() does not reach.",
                "Make a dropout layer in __init__ and call it, or give the function "
                "training=self.training (scaled_dot_product_attention: dropout_p=p if "
                "self.training else 0.0). For Monte Carlo dropout, which drops in evaluation on "
                "purpose, use fused_dropout.mc_dropout.",
            )


def _check_batch_norm(call: Call, dropped: Call, model: nn.Module) -> Iterator[Finding]:
    norm = call.module
    if not isinstance(norm, _BATCH_NORMS) or norm.running_var is None:
        return
    if model.training and not norm.training:  # frozen: its statistics are not of these inputs
        return
    if dropped.dropping and dropped.dropping.kind in (ELEMENTS, CHANNELS, STEPS, NOISE):
        yield Finding(
            "dropout-before-batchnorm",
            dropped.where,
            f"{_named(dropped)} comes directly before the BatchNorm {call.where}: in training it "
            "raises the variance of the inputs, which the running statistics keep for evaluation, "
            "where it is lower (variance shift; Li et al., CVPR 2019).",
            "Put dropout behind the BatchNorm, at best behind the last one of the model.",
        )


def _check_twice(call: Call, dropped: Call) -> Iterator[Finding]:
    first, second = dropped.dropping, call.dropping
    if first is None or second is None or second.p == 0 or first.kind != second.kind:
        return
    if second.kind == OTHER:
        return
    rates = ""
    if first.p is not None and second.p is not None:
        both = 1 - (1 - first.p) * (1 - second.p)
        rates = f": together they drop {both:.3g}"
    yield Finding(
        "dropout-twice",
        call.where,
        f"{_named(call)} drops {second.kind} of what {_named(dropped)} has dropped them of "
        f"already{rates}.",
        "Keep one of the two.",
    )


def _check_softmax(call: Call, dropped: Call) -> Iterator[Finding]:
    if not _is_one_of(call, _SOFTMAX) or dropped.dropping is None:
        return
    if dropped.dropping.kind in (ELEMENTS, CHANNELS):
        yield Finding(
            "dropout-before-softmax",
            dropped.where,
            f"{_named(dropped)} sets logits to 0 directly before a softmax; that does not take "
            "them out, a logit of 0 has a probability like any other. Dropout is for inputs and "
            "hidden units (Srivastava et al. 2014, section 4).",
            "Put dropout before the last linear layer; in attention, behind the softmax.",
        )


def _check_alpha_dropout(call: Call) -> Iterator[Finding]:
    if call.dropping is None or call.dropping.kind not in (ALPHA, ALPHA_CHANNELS):
        return
    if call.dropping.p == 0:
        return
    before = call.source
    while before is not None and _keeps_values(before):
        before = before.source
    if before is not None and _is_one_of(before, _NOT_SELU):
        name = before.function or type(before.module).__name__
        yield Finding(
            "alpha-dropout-without-selu",
            call.where,
            f"{_named(call)} comes behind {name}: it sets what it drops to SELU's lowest value, "
            f"and keeps mean 0 and variance 1, which {name} does not give (Klambauer et al. 2017).",
            "Use nn.Dropout, or SELU as the activation.",
        )


def _dropout_before(call: Call) -> Call | None:
    """The call that has dropped the input of ``call``, with only what keeps zeros in between."""
    before = call.source
    while before is not None:
        if before.dropping is not None and before.dropping.p != 0:
            return before
        if not (_keeps_values(before) or _is_one_of(before, _ZERO_KEEPING)):
            return None
        before = before.source
    return None


def _keeps_values(call: Call) -> bool:
    """Whether it changes the shape at most; dropout of rate 0 does not even that."""
    if call.dropping is not None:
        return call.dropping.p == 0
    return isinstance(call.module, _SHAPES) or call.function in _SHAPE_FUNCTIONS


def _is_one_of(call: Call, layers: dict[str, type[nn.Module]]) -> bool:
    """Whether it calls one of these layers, or the function of the same name."""
    return isinstance(call.module, tuple(layers.values())) or call.function.rstrip("_") in layers


def _named(call: Call) -> str:
    if call.module is None:
        return f"{call.function}() in {place(call.where)}"
    return f"{type(call.module).__name__} {call.where}"
