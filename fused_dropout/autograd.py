"""The autograd Functions around the operators: what is saved, which kernel gives which gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_dropout import _ext


class DropConnectMasks(NamedTuple):
    """Which masks a DropConnect layer uses: everything but the tensors that are differentiated."""

    rng_state: Tensor
    mask_bits: Tensor | None  # stored masks, or None to draw them again
    p: float
    rows_per_mask: int
    rescale: bool

    def weight_arguments(self) -> tuple[Any, ...]:
        return (self.rng_state, self.p, self.rows_per_mask, self.rescale, self.mask_bits)

    def bias_arguments(self) -> tuple[Any, ...]:
        return (self.rng_state, self.p, self.rows_per_mask, self.rescale)


def _save(ctx: Any, tensors: tuple[Tensor, ...], masks: DropConnectMasks) -> None:
    ctx.save_for_backward(*tensors, masks.rng_state, masks.mask_bits)
    ctx.settings = (masks.p, masks.rows_per_mask, masks.rescale)


def _saved(ctx: Any) -> tuple[Tensor, Tensor, Tensor | None, DropConnectMasks]:
    first, second, *third, rng_state, mask_bits = ctx.saved_tensors
    masks = DropConnectMasks(rng_state, mask_bits, *ctx.settings)
    return first, second, third[0] if third else None, masks


class DropConnectLinear(torch.autograd.Function):
    """output = rescaled (M * weight) input + m * bias, for 2-d input."""

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None, *masks: Any) -> Tensor:
        m = DropConnectMasks(*masks)
        output: Tensor = _ext.operators().dropconnect_linear(
            input, weight, bias, *m.weight_arguments()
        )
        return output

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        input, weight, _, *masks = inputs
        _save(ctx, (input, weight), DropConnectMasks(*masks))

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, _, masks = _saved(ctx)
        d_input, d_weight, d_bias = DropConnectLinearBackward.apply(
            grad_output, input, weight, ctx.needs_input_grad[:3], *masks
        )
        return (d_input, d_weight, d_bias, *[None] * len(masks))


class DropConnectLinearBackward(torch.autograd.Function):
    """(d_input, d_weight, d_bias) of :class:`DropConnectLinear`.

    Each is bilinear in the tensors it takes, so its own gradients are the same three products again
    and double backward needs no kernel of its own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        grad_output: Tensor,
        input: Tensor,
        weight: Tensor,
        needs: tuple[bool, ...],
        *masks: Any,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
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
        ctx.set_materialize_grads(False)
        _save(ctx, (grad_output, input, weight), m)
        return d_input, d_weight, d_bias

    @staticmethod
    def backward(
        ctx: Any, dd_input: Tensor | None, dd_weight: Tensor | None, dd_bias: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        *tensors, masks = _saved(ctx)
        grads = _double_backward(
            tuple(tensors), (dd_input, dd_weight, dd_bias), ctx.needs_input_grad, masks
        )
        return (*grads, None, *[None] * len(masks))


def _double_backward(
    tensors: tuple[Any, ...],
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
    needs: tuple[bool, ...],
    masks: DropConnectMasks,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of the three products for grad_output, input and weight."""
    grad_output, input, weight = tensors
    dd_input, dd_weight, dd_bias = grads
    to_grad_output = to_input = to_weight = None
    if needs[0]:
        pairs = [(dd_input, weight)] if dd_input is not None else []
        pairs += [(input, dd_weight)] if dd_weight is not None else []
        if not pairs and dd_bias is not None:
            pairs = [(torch.zeros_like(input), weight)]
        for k, (a, b) in enumerate(pairs):
            bias = dd_bias if k == 0 else None
            term = DropConnectLinear.apply(a, b, bias, *masks)
            to_grad_output = term if to_grad_output is None else to_grad_output + term
    if needs[1] and dd_weight is not None:
        to_input, _, _ = DropConnectLinearBackward.apply(
            grad_output, input, dd_weight, (True, False, False), *masks
        )
    if needs[2] and dd_input is not None:
        _, to_weight, _ = DropConnectLinearBackward.apply(
            grad_output, dd_input, weight, (False, True, False), *masks
        )
    return to_grad_output, to_input, to_weight
