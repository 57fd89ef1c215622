"""The transformer epilogue: bias, activation, dropout and residual in one pass."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from fused_dropout._core import checks, extension
from fused_dropout._core.rates import (
    CONVENTIONS,
    INVERTED,
    PAPER,
    Convention,
    inverse_keep_rate,
    keep_rate,
)
from fused_dropout._core.rng import check_single_source, resolve_rng_state, unused_rng_state
from fused_dropout._ops.bias_act_dropout_add import BiasActDropoutAdd, EpilogueSettings

Activation = Literal["none", "relu", "gelu", "gelu_tanh", "silu"]
ACTIVATIONS = get_args(Activation)


def bias_act_dropout_add(
    input: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    p: float = 0.1,
    activation: Activation = "none",
    training: bool = True,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
    convention: Convention = "inverted",
) -> Tensor:
    r"""``residual + dropout(activation(input + bias), p)`` in one pass over memory.

    Equivalent to ``F.dropout(F.gelu(input + bias), p, training) + residual``, for any of the
    activations, computed in float32 (float64 for float64) and rounded once. One pass of backward
    gives the gradients of input and bias. For it, forward keeps 16 bytes of random state, and input
    and bias unless ``activation="none"``, as eager autograd does for the activation alone.

    The mask is that of :func:`fused_dropout.functional.dropout`: element k of the input, counted in
    logical (row-major) order, has bit k of the mask of one row and stream 0.

    The bias gradient is summed in float32 (float64 for float64), in an order that depends on the
    operands' shapes alone (on a GPU also on their alignment): the same bits on every call, and for
    any number of threads.

    Second derivatives are supported and correct, but not fused: where the activation curves they
    are made of torch's operators and a mask of 1 byte per element.

    Under torch.autocast, a residual of another dtype decides the result's dtype with the input's,
    as in a sum, and the bias follows, as in :func:`torch.nn.functional.linear`.

    Source: Shoeybi et al., "Megatron-LM: Training Multi-Billion Parameter Language Models Using
    Model Parallelism", 2019 (bias_gelu, bias_dropout_add); GELU: Hendrycks and Gimpel 2016.

    Args:
        input: ``[..., features]``, any strides and memory format; float32, bfloat16, float16 or
            float64. Without a bias, any shape.
        bias: ``[features]`` or None, same dtype and device.
        residual: the shape, dtype and device of input, or None.
        p: drop probability in [0, 1]. The keep rate is q = rint((1 - p) 2^16) / 2^16, and the scale
            is exactly 1/q.
        activation: ``"none"``, ``"relu"``, ``"gelu"`` (x Phi(x)), ``"gelu_tanh"`` (torch's
            ``approximate="tanh"``) or ``"silu"``.
        training: if False, nothing is dropped: ``residual + activation(input + bias)`` (with
            ``convention="paper"`` the activation times q).
        generator: draws the random state; default: torch's generator of the input's device.
        seed: an int that makes the call a pure function of its arguments: it uses the mask of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.
        convention: ``"inverted"`` divides by q in training; ``"paper"`` multiplies by q in
            evaluation instead.

    Returns:
        A tensor of the shape and memory format of ``input``; never ``input`` or ``residual``
        itself. A dropped element is exactly its residual (or 0), whatever input and bias hold
        there.

    Raises:
        ValueError: p, activation or convention out of range; more than one of generator, seed and
            rng_state.
        RuntimeError: shapes, dtypes or devices that do not fit; no kernels for the device.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> x, bias, residual = torch.ones(2, 4), torch.zeros(4), torch.full((2, 4), 10.0)
        >>> F.bias_act_dropout_add(x, bias, residual, 0.5, "relu", seed=1)
        tensor([[10., 12., 10., 10.],
                [10., 12., 12., 12.]])
    """
    if has_torch_function((input, bias, residual)):
        return handle_torch_function(
            bias_act_dropout_add,
            (input, bias, residual),
            input,
            bias,
            residual,
            p,
            activation,
            training,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
            convention=convention,
        )
    p = checks.check_probability(p)
    checks.check_choice(activation, "activation", ACTIVATIONS)
    checks.check_choice(convention, "convention", CONVENTIONS)
    check_single_source(generator, seed, rng_state)
    _check_tensors(input, bias, residual)
    input, bias, residual = _autocast(input, bias, residual)
    _check_operands(input, bias, residual)
    extension.require_kernels(input)
    if training:
        scale = inverse_keep_rate(p) if convention == INVERTED else 1.0
    else:
        p, scale = 0.0, keep_rate(p) if convention == PAPER else 1.0
    if input.numel() == 0 or keep_rate(p) in (0.0, 1.0):  # nothing is drawn
        state = unused_rng_state()
    else:
        state = resolve_rng_state(input, generator, seed, rng_state)
    settings = EpilogueSettings(p, activation, scale)
    output: Tensor = BiasActDropoutAdd.run((input, bias, residual, state), settings)
    return output


def _autocast(
    input: Tensor, bias: Tensor | None, residual: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Under torch.autocast, all operands in the dtype of input + residual."""
    kind = input.device.type
    if kind not in ("cpu", "cuda") or not torch.is_autocast_enabled(kind):
        return input, bias, residual
    dtype = input.dtype
    if residual is not None:
        dtype = torch.promote_types(dtype, residual.dtype)
    return (
        input.to(dtype),
        None if bias is None else bias.to(dtype),
        None if residual is None else residual.to(dtype),
    )


def _check_tensors(input: Tensor, bias: Tensor | None, residual: Tensor | None) -> None:
    checks.check_dense(input, "input")
    checks.check_dense_or_none(bias, "bias")
    checks.check_dense_or_none(residual, "residual")


def _check_operands(input: Tensor, bias: Tensor | None, residual: Tensor | None) -> None:
    checks.check_float_tensor(input, "input")
    if bias is not None:
        if input.dim() == 0:
            raise RuntimeError("with a bias, input must have shape [..., features], got []")
        checks.check_like(bias, "bias", input, "input", input.shape[-1:])
    if residual is not None:
        checks.check_like(residual, "residual", input, "input", input.shape)
