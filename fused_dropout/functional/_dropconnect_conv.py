"""DropConnect's convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function

from fused_dropout._core import checks, extension
from fused_dropout._core.linear_operands import autocast_operands, check_tensors
from fused_dropout._core.rates import CONVENTIONS, INVERTED, PAPER, Convention, inverse, keep_rate
from fused_dropout._core.rng import check_single_source, resolve_rng_state
from fused_dropout._ops._convolutions import Settings, problem_of
from fused_dropout._ops.dropconnect_conv import DropConnectConv
from fused_dropout.functional._dropconnect import masked_bias
from fused_dropout.functional._mask_weight import mask_weight

ConvMask = Literal["example", "batch"]  # or a number of examples
EXAMPLE, BATCH = CONV_MASKS = get_args(ConvMask)
Padding = Literal["valid", "same"]  # or numbers
VALID, SAME = PADDINGS = get_args(Padding)

_DENSE: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_MOST_EXAMPLES = 2**40  # more than any tensor has; times the items of a vmap it is an int64


def dropconnect_conv1d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    p: float = 0.5,
    training: bool = True,
    *,
    mask: ConvMask | int = "example",
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
    convention: Convention = "inverted",
) -> Tensor:
    """A one-dimensional convolution whose every weight is dropped with probability ``p``.

    Each example draws masks of its own: equivalent to :func:`torch.nn.functional.conv1d` of
    example n with ``M[n] * weight / q`` and ``m[n] * bias / q``, Bernoulli masks of keep rate q. A
    connection is a weight, which all positions of the output share.

    The masks are those of :func:`dropconnect_linear` with ``in_channels / groups * kernel_size``
    input features, in the order in which the weight has them: mask k drops what entry k of
    ``mask_weight(weight, p, masks=N, seed=s)`` drops. A convolution with a kernel of one element is
    :func:`dropconnect_linear` over the positions of each example.

    Every example costs a dense convolution of its own. Masked weights or patches of the input are
    made for some masks at a time: at most 2^22 elements of either (2^24 on a GPU), or those of one
    mask, and as many floats of what has 16 bits. Backward draws the masks again; what is kept for
    it is ``input`` and ``weight``. Where ``input`` or a gradient is infinite or NaN, so may be its
    product with a dropped weight, as in torch's convolution with weights of 0.

    Source: Wan, Zeiler, Zhang, LeCun and Fergus, "Regularization of Neural Networks using
    DropConnect", ICML 2013, section 3, with a kernel's weights as the connections.

    Args:
        input: ``[N, in_channels, L]``, or without N for one example; any strides;
            float32, bfloat16, float16 or float64.
        weight: ``[out_channels, in_channels / groups, kernel_size]``, same dtype and device.
        bias: ``[out_channels]`` or None.
        stride, dilation: an int or a sequence of one.
        padding: zeros on both sides, an int or a sequence of one; ``"valid"`` is none,
            ``"same"`` as many as give the output the size of the input, where stride is 1.
        groups: of channels; each group's output channels see its input channels only.
        p: drop probability in [0, 1]. The keep rate is q = rint((1 - p) 2^16) / 2^16, and the scale
            is exactly 1/q.
        training: if False, the plain convolution (times q with ``convention="paper"``).
        mask: which examples share a mask: ``"example"`` (none), ``"batch"`` (all; one masked weight
            and torch's convolution), or an int: that many consecutive examples (the last group may
            be smaller).
        generator: draws the random state; default: torch's generator of the input's device.
        seed: an int that makes the call a pure function of its arguments: it uses the masks of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.
        convention: ``"inverted"`` divides by q in training; ``"paper"`` multiplies by q in
            evaluation instead.

    Returns:
        A tensor ``[N, out_channels, L_out]``, in the memory format of the input,
        differentiable twice in input, weight and bias.

    Raises:
        ValueError: p, mask or convention out of range; more than one of generator, seed and
            rng_state.
        RuntimeError: shapes, dtypes, devices or settings that do not fit, as torch's convolution
            raises it; no kernels for the device.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> x, weight = torch.ones(2, 2, 4), torch.ones(1, 2, 3)
        >>> F.dropconnect_conv1d(x, weight, seed=1).flatten(1)  # twice the weights that are kept
        tensor([[ 4.,  4.],
                [12., 12.]])
    """
    return _dispatch(
        dropconnect_conv1d, 1, input, weight, bias,
        (stride, padding, dilation, groups, p, training),
        mask=mask, generator=generator, seed=seed, rng_state=rng_state, convention=convention,
    )  # fmt: skip


def dropconnect_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    p: float = 0.5,
    training: bool = True,
    *,
    mask: ConvMask | int = "example",
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
    convention: Convention = "inverted",
) -> Tensor:
    """A two-dimensional convolution whose every weight is dropped with probability ``p``.

    Each example draws masks of its own: equivalent to :func:`torch.nn.functional.conv2d` of
    example n with ``M[n] * weight / q`` and ``m[n] * bias / q``, Bernoulli masks of keep rate q. A
    connection is a weight, which all positions of the output share.

    The masks are those of :func:`dropconnect_linear` with ``in_channels / groups * kH * kW``
    input features, in the order in which the weight has them: mask k drops what entry k of
    ``mask_weight(weight, p, masks=N, seed=s)`` drops. A convolution with a kernel of one element is
    :func:`dropconnect_linear` over the positions of each example.

    Every example costs a dense convolution of its own. Masked weights or patches of the input are
    made for some masks at a time: at most 2^22 elements of either (2^24 on a GPU), or those of one
    mask, and as many floats of what has 16 bits. Backward draws the masks again; what is kept for
    it is ``input`` and ``weight``. Where ``input`` or a gradient is infinite or NaN, so may be its
    product with a dropped weight, as in torch's convolution with weights of 0.

    Source: Wan, Zeiler, Zhang, LeCun and Fergus, "Regularization of Neural Networks using
    DropConnect", ICML 2013, section 3, with a kernel's weights as the connections.

    Args:
        input: ``[N, in_channels, H, W]``, or without N for one example; any strides;
            float32, bfloat16, float16 or float64.
        weight: ``[out_channels, in_channels / groups, kH, kW]``, same dtype and device.
        bias: ``[out_channels]`` or None.
        stride, dilation: an int, or two for height and width.
        padding: zeros on both sides, an int, or two for height and width; ``"valid"`` is none,
            ``"same"`` as many as give the output the size of the input, where stride is 1.
        groups: of channels; each group's output channels see its input channels only.
        p: drop probability in [0, 1]. The keep rate is q = rint((1 - p) 2^16) / 2^16, and the scale
            is exactly 1/q.
        training: if False, the plain convolution (times q with ``convention="paper"``).
        mask: which examples share a mask: ``"example"`` (none), ``"batch"`` (all; one masked weight
            and torch's convolution), or an int: that many consecutive examples (the last group may
            be smaller).
        generator: draws the random state; default: torch's generator of the input's device.
        seed: an int that makes the call a pure function of its arguments: it uses the masks of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.
        convention: ``"inverted"`` divides by q in training; ``"paper"`` multiplies by q in
            evaluation instead.

    Returns:
        A tensor ``[N, out_channels, H_out, W_out]``, in the memory format of the input,
        differentiable twice in input, weight and bias.

    Raises:
        ValueError: p, mask or convention out of range; more than one of generator, seed and
            rng_state.
        RuntimeError: shapes, dtypes, devices or settings that do not fit, as torch's convolution
            raises it; no kernels for the device.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> x, weight = torch.ones(2, 1, 4, 3), torch.ones(1, 1, 3, 3)
        >>> F.dropconnect_conv2d(x, weight, seed=1).flatten(1)  # twice the weights that are kept
        tensor([[10., 10.],
                [14., 14.]])
    """
    return _dispatch(
        dropconnect_conv2d, 2, input, weight, bias,
        (stride, padding, dilation, groups, p, training),
        mask=mask, generator=generator, seed=seed, rng_state=rng_state, convention=convention,
    )  # fmt: skip


def dropconnect_conv3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    p: float = 0.5,
    training: bool = True,
    *,
    mask: ConvMask | int = "example",
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
    convention: Convention = "inverted",
) -> Tensor:
    """A three-dimensional convolution whose every weight is dropped with probability ``p``.

    Each example draws masks of its own: equivalent to :func:`torch.nn.functional.conv3d` of
    example n with ``M[n] * weight / q`` and ``m[n] * bias / q``, Bernoulli masks of keep rate q. A
    connection is a weight, which all positions of the output share.

    The masks are those of :func:`dropconnect_linear` with ``in_channels / groups * kD * kH * kW``
    input features, in the order in which the weight has them: mask k drops what entry k of
    ``mask_weight(weight, p, masks=N, seed=s)`` drops. A convolution with a kernel of one element is
    :func:`dropconnect_linear` over the positions of each example.

    Every example costs a dense convolution of its own. Masked weights or patches of the input are
    made for some masks at a time: at most 2^22 elements of either (2^24 on a GPU), or those of one
    mask, and as many floats of what has 16 bits. Backward draws the masks again; what is kept for
    it is ``input`` and ``weight``. Where ``input`` or a gradient is infinite or NaN, so may be its
    product with a dropped weight, as in torch's convolution with weights of 0.

    Source: Wan, Zeiler, Zhang, LeCun and Fergus, "Regularization of Neural Networks using
    DropConnect", ICML 2013, section 3, with a kernel's weights as the connections.

    Args:
        input: ``[N, in_channels, D, H, W]``, or without N for one example; any strides;
            float32, bfloat16, float16 or float64.
        weight: ``[out_channels, in_channels / groups, kD, kH, kW]``, same dtype and device.
        bias: ``[out_channels]`` or None.
        stride, dilation: an int, or three: depth, height, width.
        padding: zeros on both sides, an int or three; ``"valid"`` is none,
            ``"same"`` as many as give the output the size of the input, where stride is 1.
        groups: of channels; each group's output channels see its input channels only.
        p: drop probability in [0, 1]. The keep rate is q = rint((1 - p) 2^16) / 2^16, and the scale
            is exactly 1/q.
        training: if False, the plain convolution (times q with ``convention="paper"``).
        mask: which examples share a mask: ``"example"`` (none), ``"batch"`` (all; one masked weight
            and torch's convolution), or an int: that many consecutive examples (the last group may
            be smaller).
        generator: draws the random state; default: torch's generator of the input's device.
        seed: an int that makes the call a pure function of its arguments: it uses the masks of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.
        convention: ``"inverted"`` divides by q in training; ``"paper"`` multiplies by q in
            evaluation instead.

    Returns:
        A tensor ``[N, out_channels, D_out, H_out, W_out]``, in the memory format of the input,
        differentiable twice in input, weight and bias.

    Raises:
        ValueError: p, mask or convention out of range; more than one of generator, seed and
            rng_state.
        RuntimeError: shapes, dtypes, devices or settings that do not fit, as torch's convolution
            raises it; no kernels for the device.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> x, weight = torch.ones(2, 1, 3, 2, 2), torch.ones(1, 1, 2, 2, 2)
        >>> F.dropconnect_conv3d(x, weight, seed=1).flatten(1)  # twice the weights that are kept
        tensor([[ 8.,  8.],
                [14., 14.]])
    """
    return _dispatch(
        dropconnect_conv3d, 3, input, weight, bias,
        (stride, padding, dilation, groups, p, training),
        mask=mask, generator=generator, seed=seed, rng_state=rng_state, convention=convention,
    )  # fmt: skip


def _dispatch(
    function: Callable[..., Tensor],
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    settings: tuple[Any, ...],
    **options: Any,
) -> Tensor:
    operands = (input, weight, bias)
    if has_torch_function(operands):
        output: Tensor = handle_torch_function(function, operands, *operands, *settings, **options)
        return output
    return _convolve(dims, input, weight, bias, *settings, **options)


def _convolve(
    dims: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sequence[int],
    padding: int | Sequence[int] | Padding,
    dilation: int | Sequence[int],
    groups: int,
    p: float,
    training: bool,
    mask: ConvMask | int,
    generator: torch.Generator | None,
    seed: int | None,
    rng_state: Tensor | None,
    convention: Convention,
) -> Tensor:
    p = checks.check_probability(p)
    checks.check_choice(convention, "convention", CONVENTIONS)
    checks.check_mask_mode(mask, CONV_MASKS, "examples")
    if isinstance(padding, str):
        checks.check_choice(padding, "padding", PADDINGS)
    check_single_source(generator, seed, rng_state)
    check_tensors(input, weight, bias)
    input, weight, bias = autocast_operands(input, weight, bias)
    dense, q = _DENSE[dims], keep_rate(p)
    if not training or q == 1.0:
        output = dense(input, weight, bias, stride, padding, dilation, groups)
        return output * q if convention == PAPER and not training else output
    _check_dtypes(input, weight, bias)
    try:
        sizes = _sizes(dims, input, weight, bias, stride, padding, dilation, groups)
    except (RuntimeError, TypeError, ValueError):
        dense(input, weight, bias, stride, padding, dilation, groups)  # torch's own error
        raise
    extension.require_kernels(input)
    state = resolve_rng_state(input, generator, seed, rng_state)
    scale = inverse(q) if convention == INVERTED else 1.0
    one_example = input.dim() == dims + 1
    batch = input.unsqueeze(0) if one_example else input
    if any(sizes.behind):
        batch = F.pad(batch, [pad for each in reversed(sizes.behind) for pad in (0, each)])
    if mask == BATCH:
        masked = mask_weight(weight, p, rng_state=state, convention=convention)
        own_bias = None if bias is None else masked_bias(bias, state, p, scale)
        output = dense(batch, masked, own_bias, *sizes[:3], groups)
    else:
        each = 1 if isinstance(mask, str) else min(int(mask), _MOST_EXAMPLES)
        output = DropConnectConv.run(
            (batch, weight, bias, state), (p, each, scale, *map(list, sizes[:3]), groups)
        )
    return output.squeeze(0) if one_example else output


class _Sizes(NamedTuple):
    """Settings of a convolution, an int for each dimension."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    behind: tuple[int, ...]  # zeros that the input needs behind it, besides its padding


def _sizes(
    dims: int, input: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any,
    dilation: Any, groups: int,
) -> _Sizes:  # fmt: skip
    """Checks that all of it fits.

    Raises:
        RuntimeError, TypeError, ValueError: it does not.
    """
    if weight.dim() != dims + 2 or input.dim() not in (dims + 1, dims + 2):
        raise RuntimeError(
            f"input must have {dims + 1} or {dims + 2} dimensions and weight {dims + 2}, got "
            f"{list(input.shape)} and {list(weight.shape)}"
        )
    if bias is not None:
        checks.check_shape(bias, "bias", weight.shape[:1])
    strides = _each(stride, "stride", dims)
    dilations = _each(dilation, "dilation", dims)
    behind: tuple[int, ...] = (0,) * dims
    if not isinstance(padding, str):
        pads = _each(padding, "padding", dims)
    elif padding == VALID:
        pads = behind
    elif padding == SAME and all(step == 1 for step in strides):
        totals = [
            dilate * (kernel - 1)
            for dilate, kernel in zip(dilations, weight.shape[2:], strict=True)
        ]
        pads = tuple(total // 2 for total in totals)
        behind = tuple(total % 2 for total in totals)
    else:
        raise RuntimeError(
            f"padding must be ints or 'valid' where stride is not 1, got {padding!r}, {stride}"
        )
    examples = (1, *input.shape) if input.dim() == dims + 1 else tuple(input.shape)
    padded = (
        *examples[:2],
        *(size + more for size, more in zip(examples[2:], behind, strict=True)),
    )
    settings = Settings(0.5, 1, 1.0, strides, pads, dilations, checks.as_int(groups, "groups"))
    problem_of(padded, weight.shape, settings)
    return _Sizes(strides, pads, dilations, behind)


def _each(values: Any, name: str, dims: int) -> tuple[int, ...]:
    """An int for each dimension; a single one is meant for all."""
    numbers = checks.as_ints(values, name)
    return numbers * dims if len(numbers) == 1 else numbers


def _check_dtypes(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    checks.check_float_tensor(input, "input")
    checks.check_float_tensor(weight, "weight")
    checks.check_same(weight, "weight", input, "input")
    if bias is not None:
        checks.check_float_tensor(bias, "bias")
        checks.check_same(bias, "bias", input, "input")
