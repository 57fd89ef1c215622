"""A product with a dropped operand, of which no dropped copy is kept: attention's last step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling
from torch.overrides import handle_torch_function, has_torch_function

from fused_dropout._core import checks, extension
from fused_dropout._core.linear_operands import autocast_dtype, cast
from fused_dropout._core.private_torch import in_dual_level, transforms_active
from fused_dropout._core.rates import inverse_keep_rate, keep_rate
from fused_dropout._core.rng import check_single_source, resolve_rng_state, unused_rng_state
from fused_dropout._ops._differentiable import Settings
from fused_dropout._ops.dropout import Dropout, dropout_settings
from fused_dropout.functional._dropout import dropout


def dropout_matmul(
    input: Tensor,
    other: Tensor,
    p: float = 0.5,
    training: bool = True,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    """``dropout(input, p) @ other``, for which backward keeps no dropped copy.

    Made for attention: ``dropout_matmul(scores.softmax(-1), value, p)`` keeps the softmax's output,
    which the softmax keeps anyway, and 16 bytes of random state, where ``F.dropout(weights, p) @
    value`` keeps a mask and the dropped weights beside it. Backward drops again, which is one more
    pass over the weights. Under torch.compile, and under transforms of torch.func, it is dropout
    and a product, of which they keep what they choose.

    The mask is that of :func:`fused_dropout.functional.dropout` on ``input``.

    Source: the attention dropout of Vaswani et al., "Attention Is All You Need", NeurIPS 2017.

    Args:
        input: ``[..., M, K]``, the operand that is dropped; any strides; float32, bfloat16, float16
            or float64. Under torch.autocast both operands are converted first, as for a product.
        other: ``[..., K, N]``, of the dtype and device of ``input``. Leading dimensions broadcast
            as in :func:`torch.matmul`.
        p: drop probability in [0, 1]. The keep rate is q = rint((1 - p) 2^16) / 2^16, and the scale
            is exactly 1/q.
        training: if False, the result is ``input @ other``.
        generator: draws the random state; default: torch's generator of the input's device.
        seed: an int that makes the call a pure function of its arguments: it uses the mask of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.

    Returns:
        ``[..., M, N]``, differentiable any number of times.

    Raises:
        ValueError: p out of range; more than one of generator, seed and rng_state.
        RuntimeError: fewer than 2 dimensions, or shapes that have no product; another dtype or
            device than that of ``input``; an integer dtype (NotImplementedError for complex numbers
            and 8-bit floats, as in torch); no kernels for the device.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> weights, value = torch.full((2, 4), 0.25), torch.eye(4)
        >>> F.dropout_matmul(weights, value, 0.5, seed=1)
        tensor([[0.0000, 0.5000, 0.0000, 0.0000],
                [0.0000, 0.5000, 0.5000, 0.5000]])
    """
    if has_torch_function((input, other)):
        return handle_torch_function(
            dropout_matmul,
            (input, other),
            input,
            other,
            p,
            training,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
        )
    p = checks.check_probability(p)
    check_single_source(generator, seed, rng_state)
    for tensor, name in ((input, "input"), (other, "other")):
        checks.check_dense(tensor, name)
        checks.check_float_tensor(tensor, name)
    dtype = autocast_dtype(input)
    input, other = cast(input, dtype), cast(other, dtype)
    checks.check_same(other, "other", input, "input")
    if input.dim() < 2 or other.dim() < 2 or input.shape[-1] != other.shape[-2]:
        raise RuntimeError(
            "input and other must have shapes [..., M, K] and [..., K, N], got "
            f"{list(input.shape)} and {list(other.shape)}"
        )
    if not training:
        return input @ other
    if is_compiling() or transforms_active() or in_dual_level():
        dropped = dropout(input, p, generator=generator, seed=seed, rng_state=rng_state)
        return dropped @ other
    q = keep_rate(p)
    if q == 1.0 or input.numel() == 0:
        return input @ other
    extension.require_kernels(input)
    drawn = q > 0.0
    state = resolve_rng_state(input, generator, seed, rng_state) if drawn else unused_rng_state()
    settings = dropout_settings(p, inverse_keep_rate(p))
    output: Tensor = _DropoutMatmul.apply(input, other, state, settings)
    return output


class _DropoutMatmul(torch.autograd.Function):
    """What is kept: both operands, and the random state."""

    @staticmethod
    def forward(
        ctx: Any, input: Tensor, other: Tensor, state: Tensor, settings: Settings
    ) -> Tensor:
        ctx.save_for_backward(input, other, state)
        ctx.settings = settings
        return _dropped(input, state, settings) @ other

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        """By operators that have derivatives themselves."""
        input, other, state = ctx.saved_tensors
        (grad,) = grads
        d_input = d_other = None
        if ctx.needs_input_grad[0]:
            d_dropped = (grad @ other.mT).sum_to_size(input.shape)
            d_input = _dropped(d_dropped, state, ctx.settings)
        if ctx.needs_input_grad[1]:
            d_other = (_dropped(input, state, ctx.settings).mT @ grad).sum_to_size(other.shape)
        return d_input, d_other, None, None


def _dropped(tensor: Tensor, state: Tensor, settings: Settings) -> Tensor:
    return Dropout.call((tensor, None, state), settings)
