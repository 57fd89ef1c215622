"""DropConnect's three products and their gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_dropout import _ext

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class DropConnectMasks(NamedTuple):
    """Which masks a DropConnect layer uses: everything but the tensors that are differentiated."""

    rng_state: Tensor | None  # None in a forward pass that draws it itself
    mask_bits: Tensor | None  # stored masks, or None to draw them again
    p: float
    rows_per_mask: int
    rescale: bool

    def weight_arguments(self) -> tuple[Any, ...]:
        return (self.rng_state, self.p, self.rows_per_mask, self.rescale, self.mask_bits)

    def bias_arguments(self) -> tuple[Any, ...]:
        return (self.rng_state, self.p, self.rows_per_mask, self.rescale)


def _save(ctx: Any, tensors: tuple[Tensor | None, ...], masks: DropConnectMasks) -> None:
    ctx.save_for_backward(*tensors, masks.rng_state, masks.mask_bits)
    ctx.settings = (masks.p, masks.rows_per_mask, masks.rescale)


def _saved(ctx: Any) -> tuple[list[Any], DropConnectMasks]:
    *tensors, rng_state, mask_bits = ctx.saved_tensors
    return tensors, DropConnectMasks(rng_state, mask_bits, *ctx.settings)


class DropConnectLinear(torch.autograd.Function):
    """(output, the rng_state that was drawn or None), for 2-d input.

    output = rescaled (M * weight) input + m * bias. `generator` counts only where the masks have no
    rng_state yet; None is the device's own.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        generator: torch.Generator | None,
        rng_state: Tensor | None,
        mask_bits: Tensor | None,
        p: float,
        rows_per_mask: int,
        rescale: bool,
    ) -> tuple[Tensor, Tensor | None]:
        op = _ext.operators().dropconnect_linear
        m = DropConnectMasks(rng_state, mask_bits, p, rows_per_mask, rescale)
        if m.rng_state is not None:
            return op(input, weight, bias, *m.weight_arguments()), None
        output, rng_state = op.generator(
            input, weight, bias, generator, m.p, m.rows_per_mask, m.rescale
        )
        return output, rng_state

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor | None]
    ) -> None:
        input, weight, _, _, *masks = inputs
        m, drawn = DropConnectMasks(*masks), outputs[1]
        if drawn is not None:
            ctx.mark_non_differentiable(drawn)
            m = m._replace(rng_state=drawn)
        # As F.linear: each operand is kept only for the other's gradient.
        for_input, for_weight = ctx.needs_input_grad[:2]
        kept = (input if for_weight else None, weight if for_input else None)
        _save(ctx, kept, m)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, _: None) -> tuple[Tensor | None, ...]:
        (input, weight), masks = _saved(ctx)
        # torch.compile differentiates once, and cannot trace the nested Function.
        compiling = torch.compiler.is_compiling()
        compute = _gradients if compiling else DropConnectLinearBackward.apply
        gradients = compute(grad_output, input, weight, ctx.needs_input_grad[:3], *masks)
        return (*gradients, None, *[None] * len(masks))


def _gradients(
    grad_output: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    needs: tuple[bool, ...],
    *masks: Any,
) -> Gradients:
    """(d_input, d_weight, d_bias), those of `needs`."""
    ops, m = _ext.operators(), DropConnectMasks(*masks)
    d_input = d_weight = d_bias = None
    if needs[0] and needs[1]:
        # One pass draws (or reads) every mask once for both.
        d_input, d_weight = ops.dropconnect_linear_d_both(
            grad_output, input, weight, *m.weight_arguments()
        )
    elif needs[0]:
        d_input = ops.dropconnect_linear_d_input(grad_output, weight, *m.weight_arguments())
    elif needs[1]:
        d_weight = ops.dropconnect_linear_d_weight(grad_output, input, *m.weight_arguments())
    if needs[2]:
        d_bias = ops.dropconnect_linear_d_bias(grad_output, *m.bias_arguments())
    return d_input, d_weight, d_bias


class DropConnectLinearBackward(torch.autograd.Function):
    """(d_input, d_weight, d_bias) of :class:`DropConnectLinear`.

    Each is bilinear in the tensors it takes, so its own gradients are the same three products again
    and double backward needs no kernel of its own.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad_output: Tensor,
        input: Tensor | None,
        weight: Tensor | None,
        needs: tuple[bool, ...],
        rng_state: Tensor,
        mask_bits: Tensor | None,
        p: float,
        rows_per_mask: int,
        rescale: bool,
    ) -> Gradients:
        masks = DropConnectMasks(rng_state, mask_bits, p, rows_per_mask, rescale)
        return _gradients(grad_output, input, weight, needs, *masks)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        grad_output, input, weight, _, *masks = inputs
        ctx.set_materialize_grads(False)
        _save(ctx, (grad_output, input, weight), DropConnectMasks(*masks))

    @staticmethod
    def backward(
        ctx: Any, dd_input: Tensor | None, dd_weight: Tensor | None, dd_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        tensors, masks = _saved(ctx)
        grad_output, to_input, to_weight = tensors[0], None, None
        for_grad_output, for_input, for_weight = ctx.needs_input_grad[:3]
        if for_input and dd_weight is not None:
            to_input, _, _ = DropConnectLinearBackward.apply(
                grad_output, None, dd_weight, (True, False, False), *masks
            )
        if for_weight and dd_input is not None:
            _, to_weight, _ = DropConnectLinearBackward.apply(
                grad_output, dd_input, None, (False, True, False), *masks
            )
        seconds = (dd_input, dd_weight, dd_bias)
        to_grad_output = _to_grad_output(tensors, seconds, masks) if for_grad_output else None
        return (to_grad_output, to_input, to_weight, None, *[None] * len(masks))


def _to_grad_output(tensors: list[Any], grads: Gradients, masks: DropConnectMasks) -> Tensor | None:
    """The layer applied to dd_input, and to the input with dd_weight and dd_bias for parameters."""
    grad_output, input, weight = tensors
    dd_input, dd_weight, dd_bias = grads
    terms = []
    if dd_input is not None:
        terms.append(_layer(dd_input, weight, None, masks))
    if dd_weight is not None:
        terms.append(_layer(input, dd_weight, None, masks))
    if dd_bias is not None:
        rows, outs = grad_output.shape
        no_features = grad_output.new_zeros(rows, 0), grad_output.new_zeros(outs, 0)
        terms.append(_layer(*no_features, dd_bias, masks._replace(mask_bits=None)))
    return sum(terms[1:], terms[0]) if terms else None


def _layer(input: Tensor, weight: Tensor, bias: Tensor | None, masks: DropConnectMasks) -> Tensor:
    output: Tensor = DropConnectLinear.apply(input, weight, bias, None, *masks)[0]
    return output
