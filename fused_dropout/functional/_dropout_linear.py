"""A linear layer whose input is dropped."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from fused_dropout._core import checks, extension
from fused_dropout._core.linear_operands import (
    autocast_dtype,
    cast,
    cast_dtype,
    check_operands,
    check_tensors,
)
from fused_dropout._core.rates import inverse, keep_rate
from fused_dropout._core.rng import check_single_source, resolve_rng_state, unused_rng_state
from fused_dropout._ops.dropout_linear import DropoutLinear


def dropout_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    p: float = 0.5,
    training: bool = True,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    """``F.linear(F.dropout(input, p), weight, bias)`` that keeps no dropped copy and no mask.

    What autograd keeps for backward is ``input`` itself, ``weight`` and 16 bytes of random state.
    Layers that read one input, as LoRA adapters of q, k and v do, share it, where
    ``F.linear(F.dropout(x, p), A)`` keeps a dropped copy of x and a mask of bytes for each.

    The mask is that of ``fused_dropout.functional.dropout(input, p)`` with the same random state:
    its elements, counted in row-major order whatever the strides, are those of
    ``fused_dropout.mask(input.numel(), p, seed=seed, offset=offset)``. A dropped element counts as
    0, and its gradient is 0, even where ``input`` or the gradient is infinite or NaN.

    Rows are dropped a block at a time and multiplied by torch's matrix product, forward and
    backward. Memory for the time of a call, besides its results: a block of 2^20 elements (2^22 on
    a GPU) of the input, or one row if that is more, and the same again under autocast; where the
    gradient of ``weight`` is the sum of several blocks, one more tensor of its size, in 16 bits
    three: products of blocks are added in float32 (float64). A weight or a gradient that is not in
    row-major order is copied; an input never is. The last bits of results may depend on the number
    of threads, where torch's product does.

    Under torch.autocast the result has autocast's dtype, as F.linear's; the input is dropped as it
    is and cast a block at a time, so that no cast copy of it is kept either.

    Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022, whose
    adapters are ``B(A(dropout(x)))``; dropout itself: Srivastava et al., JMLR 2014.

    Args:
        input: ``[..., in_features]``, float32, bfloat16, float16 or float64; any strides.
        weight: ``[out_features, in_features]``, same dtype and device.
        bias: ``[out_features]`` or None; it is not dropped.
        p: drop probability in [0, 1]. The keep rate is q = rint((1 - p) 2^16) / 2^16, and the scale
            is exactly 1/q.
        training: if False, ``F.linear(input, weight, bias)``.
        generator: draws the random state; default: torch's generator of the input's device.
        seed: an int that makes the call a pure function of its arguments: it uses the mask of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.

    Returns:
        A tensor ``[..., out_features]``, differentiable any number of times in input, weight and
        bias.

    Raises:
        ValueError: p out of range; more than one of generator, seed and rng_state.
        RuntimeError: shapes, dtypes or devices that do not fit; no kernels for the device.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> x, weight = torch.ones(2, 4), torch.ones(3, 4)
        >>> F.dropout(x, 0.5, seed=1)
        tensor([[0., 2., 0., 0.],
                [0., 2., 2., 2.]])
        >>> F.dropout_linear(x, weight, p=0.5, seed=1)
        tensor([[2., 2., 2.],
                [6., 6., 6.]])
    """
    if has_torch_function((input, weight, bias)):
        return handle_torch_function(
            dropout_linear,
            (input, weight, bias),
            input,
            weight,
            bias,
            p,
            training,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
        )
    p = checks.check_probability(p)
    check_single_source(generator, seed, rng_state)
    check_tensors(input, weight, bias)
    dtype = autocast_dtype(input)
    if dtype is None:
        check_operands(input, weight, bias)
    else:
        weight, bias = cast(weight, dtype), cast(bias, dtype)
        check_operands(input, weight, bias, cast_dtype(input, dtype))
    q = keep_rate(p)
    if not training or q == 1.0 or input.numel() == 0 or weight.numel() == 0:
        return F.linear(input, weight, bias)
    extension.require_kernels(input)
    state = resolve_rng_state(input, generator, seed, rng_state) if q > 0 else unused_rng_state()
    rows = input.unsqueeze(0) if input.dim() == 1 else input
    output: Tensor = DropoutLinear.run((rows, weight, bias, state), (p, inverse(q)))
    return output.squeeze(0) if input.dim() == 1 else output
