"""Weights under the masks of DropConnect."""

from __future__ import annotations

import math

import torch
from torch import Tensor, is_grad_enabled
from torch.overrides import handle_torch_function, has_torch_function_unary

from fused_dropout._core import checks, extension
from fused_dropout._core.rates import CONVENTIONS, INVERTED, PAPER, Convention, inverse, keep_rate
from fused_dropout._core.rng import check_single_source, resolve_rng_state, unused_rng_state
from fused_dropout._ops.mask_weight import MaskWeight
from fused_dropout.functional._dropconnect import AUTO, stores_masks


def mask_weight(
    weight: Tensor,
    p: float = 0.5,
    training: bool = True,
    *,
    masks: int | None = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
    convention: Convention = "inverted",
) -> Tensor:
    """A weight whose elements are dropped with probability ``p``, by the masks of DropConnect.

    The others are divided by the keep rate. For layers that :func:`dropconnect_linear` does not
    know: ``torch.nn.functional.linear(x, mask_weight(weight, p, seed=s))`` is
    ``dropconnect_linear(x, weight, p=p, mask="batch", seed=s)``, and entry k of
    ``mask_weight(weight, p, masks=n, seed=s)`` has the mask of its k-th example. A dropped weight
    is 0, and so is its gradient, even where ``weight`` or the gradient is infinite or NaN.

    Source: Wan, Zeiler, Zhang, LeCun and Fergus, "Regularization of Neural Networks using
    DropConnect", ICML 2013, section 3.

    Args:
        weight: ``[out_features, ...]``, any strides; float32, bfloat16, float16 or float64. Its
            other dimensions count as one, in_features; a vector is one row of a matrix.
        p: drop probability in [0, 1]. The keep rate is q = rint((1 - p) 2^16) / 2^16, and the scale
            is exactly 1/q.
        training: if False, returns ``weight`` (times q with ``convention="paper"``).
        masks: how many masks; None is one, without a dimension for it in the result.
        generator: draws the random state; default: torch's generator of the weight's device.
        seed: an int that makes the call a pure function of its arguments: it uses the masks of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.
        convention: ``"inverted"`` divides by q in training; ``"paper"`` multiplies by q in
            evaluation instead.

    Returns:
        A tensor of the shape of ``weight``, or ``[masks, *weight.shape]``, differentiable any
        number of times. Where nothing is dropped, it is ``weight`` itself, expanded for ``masks``.

    Raises:
        ValueError: p, masks or convention out of range; more than one of generator, seed and
            rng_state.
        RuntimeError: a weight without dimensions or of an integer dtype (NotImplementedError for
            complex numbers and 8-bit floats, as in torch); no kernels for the device.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> F.mask_weight(torch.ones(2, 4), 0.5, seed=1)
        tensor([[0., 2., 0., 0.],
                [2., 2., 2., 2.]])
        >>> F.mask_weight(torch.ones(2, 4), 0.5, masks=3, seed=1).shape
        torch.Size([3, 2, 4])
    """
    if has_torch_function_unary(weight):
        return handle_torch_function(
            mask_weight,
            (weight,),
            weight,
            p,
            training,
            masks=masks,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
            convention=convention,
        )
    p = checks.check_probability(p)
    checks.check_dense(weight, "weight")
    checks.check_choice(convention, "convention", CONVENTIONS)
    check_single_source(generator, seed, rng_state)
    count = 1 if masks is None else checks.check_int(masks, "masks", 0)
    if weight.dim() == 0:
        raise RuntimeError("weight must have at least one dimension, got []")
    q = keep_rate(p)
    if not training or q == 1.0 or weight.numel() == 0:
        result = weight * q if convention == PAPER and not training else weight
        return result if masks is None else result.expand(count, *weight.shape)
    checks.check_float_tensor(weight, "weight")
    extension.require_kernels(weight)
    draws = q > 0.0
    state = resolve_rng_state(weight, generator, seed, rng_state) if draws else unused_rng_state()
    rows = weight.shape[0] if weight.dim() > 1 else 1
    matrix = weight.reshape(rows, math.prod(weight.shape) // rows)
    bits = None
    needs_masks_again = is_grad_enabled() and weight.requires_grad
    if needs_masks_again and stores_masks(AUTO, p, count, matrix, shared=True):
        bits = extension.operators().dropconnect_mask_bits(matrix, state, count, p)
    scale = inverse(q) if convention == INVERTED else 1.0
    stack: Tensor = MaskWeight.run((matrix, state, bits), (p, count, scale))
    return stack.reshape(weight.shape if masks is None else (count, *weight.shape))
