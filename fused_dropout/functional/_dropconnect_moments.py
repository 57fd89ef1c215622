"""Mean and variance of a DropConnect layer over its masks (Wan et al. 2013)."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor, is_autocast_enabled
from torch.overrides import handle_torch_function, has_torch_function

from fused_dropout._core import checks, extension
from fused_dropout._core.linear_operands import autocast_operands, check_operands, check_tensors
from fused_dropout._core.rates import CONVENTIONS, INVERTED, Convention, inverse, keep_rate
from fused_dropout._ops.dropconnect_moments import DropConnectMoments


class Moments(NamedTuple):
    """Moments of a layer's pre-activations over its masks.

    Attributes:
        mean: ``[..., out_features]``.
        variance: ``[..., out_features]``.
    """

    mean: Tensor
    variance: Tensor


def dropconnect_moments(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    p: float = 0.5,
    *,
    convention: Convention = "inverted",
    mask_bias: bool = True,
) -> Moments:
    r"""Mean and variance of :func:`dropconnect_linear` over its masks, exactly, in one pass.

    With keep rate q,

    .. math:: mean = W x + b, \quad variance = \frac{1 - q}{q} (W^{2} x^{2} + b^{2})

    with squares element by element; with ``convention="paper"`` the factors are q and q (1 - q)
    instead of 1 and (1 - q) / q. A weight that is loaded serves both sums: to the layer
    alone the variance adds as many multiply-adds again, and no bytes of weights.

    On the CPU 48 rows and more are two of torch's matrix products, of the operands and of their
    squares: buffers of the input's size, and of at most 2^20 weights. The last bits of these
    results may depend on the number of threads.

    Source: Wan, Zeiler, Zhang, LeCun and Fergus, "Regularization of Neural Networks using
    DropConnect", ICML 2013, section 3.2 and Algorithm 2.

    Args:
        input: ``[..., in_features]``, float32, bfloat16, float16 or float64; any strides.
        weight: ``[out_features, in_features]``, same dtype and device.
        bias: ``[out_features]`` or None.
        p: drop probability in [0, 1]. The keep rate is q = rint((1 - p) 2^16) / 2^16. With q = 0
            all masks drop everything: the moments are 0.
        convention: that of the layer in training: ``"inverted"`` divides by q, ``"paper"`` does
            not.
        mask_bias: whether the bias is masked, and scaled, too. If not, it is added to the mean as
            it is, and the variance has nothing of it.

    Returns:
        (mean, variance), a named tuple of tensors ``[..., out_features]`` in float32, or float64
        for float64: a variance has twice the range of exponents of its operands. Differentiable in
        input, weight and bias any number of times.

    Raises:
        ValueError: p or convention out of range.
        RuntimeError: shapes, dtypes or devices that do not fit; no kernels for the device.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> F.dropconnect_moments(torch.tensor([1.0, 2.0]), torch.tensor([[3.0, -1.0]]), p=0.5)
        Moments(mean=tensor([1.]), variance=tensor([13.]))
    """
    if has_torch_function((input, weight, bias)):
        moments: Moments = handle_torch_function(
            dropconnect_moments,
            (input, weight, bias),
            input,
            weight,
            bias,
            p,
            convention=convention,
            mask_bias=mask_bias,
        )
        return moments
    p = checks.check_probability(p)
    checks.check_choice(convention, "convention", CONVENTIONS)
    checks.check_bool(mask_bias, "mask_bias")
    if is_autocast_enabled("cpu") or is_autocast_enabled("cuda"):
        check_tensors(input, weight, bias)
        input, weight, bias = autocast_operands(input, weight, bias)
    check_operands(input, weight, bias)
    extension.require_kernels(input)
    q = keep_rate(p)
    if convention == INVERTED:
        scales = (1.0 if q > 0.0 else 0.0), (1.0 - q) * inverse(q) if q > 0.0 else 0.0
    else:
        scales = q, q * (1.0 - q)
    flat = input.reshape(math.prod(input.shape[:-1]), weight.shape[1])
    mean, variance = DropConnectMoments.run((flat, weight, bias), (*scales, mask_bias))
    shape = (*input.shape[:-1], weight.shape[0])
    return Moments(mean.reshape(shape), variance.reshape(shape))
