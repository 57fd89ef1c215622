"""Dropout of whole channels."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from fused_dropout._core.checks import check_probability_and_input
from fused_dropout.functional._dropout import dropout


def dropout1d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    """Zeroes channels of sequences ``[N, C, L]`` with probability ``p`` and scales up the others.

    The channels that are kept are divided by the keep rate. Equivalent to
    :func:`torch.nn.functional.dropout1d`, with exact rates. Backward draws the mask again from 16
    bytes of random state.

    Each channel of each example has one element of the mask: channel c of example n has element
    ``n * C + c`` of ``fused_dropout.mask(N * C, p, seed=seed, offset=offset)``. A dropped channel
    is 0, and so is its gradient, even where ``input`` or the gradient is infinite or NaN.

    Source: Tompson et al., "Efficient Object Localization Using Convolutional Networks", CVPR 2015.

    Args:
        input: ``[N, C, L]`` or ``[C, L]``; any strides and memory format; float32, bfloat16,
            float16 or float64.
        p: drop probability in [0, 1]. The keep rate is q = rint((1 - p) 2^16) / 2^16, and the scale
            is exactly 1/q.
        training: if False, returns ``input``.
        inplace: write the result into ``input``.
        generator: draws the random state; default: torch's generator of the input's device.
        seed: an int that makes the call a pure function of its arguments: it uses the mask of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.

    Returns:
        A tensor of the shape and memory format of ``input``, differentiable any number of times.

    Raises:
        ValueError: p out of range; more than one of generator, seed and rng_state.
        RuntimeError: another number of dimensions; an integer dtype (NotImplementedError for
            complex numbers and 8-bit floats, as in torch); no kernels for the device; ``inplace``
            on a leaf that requires grad, or on elements that share memory.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> F.dropout1d(torch.ones(1, 3, 4), 0.5, seed=1)
        tensor([[[0., 0., 0., 0.],
                 [2., 2., 2., 2.],
                 [0., 0., 0., 0.]]])
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            dropout1d,
            (input,),
            input,
            p,
            training,
            inplace,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
        )
    p = check_probability_and_input(p, input)
    if input.dim() not in (2, 3):
        raise RuntimeError(
            f"dropout1d: Expected 2D or 3D input, but received a {input.dim()}D input. It drops "
            "channels of [N, C, L] or [C, L]"
        )
    first_shared = input.dim() - 1
    return _drop_channels(input, first_shared, p, training, inplace, generator, seed, rng_state)


def dropout2d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    """Zeroes channels of images ``[N, C, H, W]`` with probability ``p``, scales up the others.

    The channels that are kept are divided by the keep rate. Equivalent to
    :func:`torch.nn.functional.dropout2d`, with exact rates. Backward draws the mask again from 16
    bytes of random state.

    Each channel of each example has one element of the mask: channel c of example n has element
    ``n * C + c`` of ``fused_dropout.mask(N * C, p, seed=seed, offset=offset)``. A dropped channel
    is 0, and so is its gradient, even where ``input`` or the gradient is infinite or NaN.

    As in torch, any number of dimensions from 2 on is read as ``[N, C, ...]``.

    Source: Tompson et al., "Efficient Object Localization Using Convolutional Networks", CVPR 2015.

    Args:
        input: ``[N, C, H, W]``; any strides and memory format; float32, bfloat16, float16 or
            float64.
        p: drop probability in [0, 1]. The keep rate is q = rint((1 - p) 2^16) / 2^16, and the scale
            is exactly 1/q.
        training: if False, returns ``input``.
        inplace: write the result into ``input``.
        generator: draws the random state; default: torch's generator of the input's device.
        seed: an int that makes the call a pure function of its arguments: it uses the mask of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.

    Returns:
        A tensor of the shape and memory format of ``input``, differentiable any number of times.

    Warns:
        UserWarning: ``input`` does not have 4 dimensions.

    Raises:
        ValueError: p out of range; more than one of generator, seed and rng_state.
        RuntimeError: fewer than 2 dimensions, in training; an integer dtype (NotImplementedError
            for complex numbers and 8-bit floats, as in torch); no kernels for the device;
            ``inplace`` on a leaf that requires grad, or on elements that share memory.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> F.dropout2d(torch.ones(1, 3, 8, 8), 0.5, seed=1).amax((2, 3))  # of each channel
        tensor([[0., 2., 0.]])
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            dropout2d,
            (input,),
            input,
            p,
            training,
            inplace,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
        )
    p = check_probability_and_input(p, input)
    if input.dim() == 3:
        warnings.warn(
            "dropout2d: Received a 3D input to dropout2d and assuming that channel-wise 1D dropout "
            "behavior is desired - input is interpreted as shape (N, C, L), where C is the channel "
            "dim. Use dropout1d to say so plainly.",
            stacklevel=2,
        )
    elif input.dim() != 4:
        _warn_of_dimensions("dropout2d", input.dim(), "[N, C, H, W]")
    return _drop_channels(input, 2, p, training, inplace, generator, seed, rng_state)


def dropout3d(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    """Zeroes channels of volumes ``[N, C, D, H, W]`` with probability ``p``, scales up the others.

    The channels that are kept are divided by the keep rate. Equivalent to
    :func:`torch.nn.functional.dropout3d`, with exact rates. Backward draws the mask again from 16
    bytes of random state.

    Each channel of each example has one element of the mask: channel c of example n has element
    ``n * C + c`` of ``fused_dropout.mask(N * C, p, seed=seed, offset=offset)``. A dropped channel
    is 0, and so is its gradient, even where ``input`` or the gradient is infinite or NaN.

    As in torch, any number of dimensions but 5 is read as ``[C, ...]``.

    Source: Tompson et al., "Efficient Object Localization Using Convolutional Networks", CVPR 2015.

    Args:
        input: ``[N, C, D, H, W]`` or ``[C, D, H, W]``; any strides and memory format; float32,
            bfloat16, float16 or float64.
        p: drop probability in [0, 1]. The keep rate is q = rint((1 - p) 2^16) / 2^16, and the scale
            is exactly 1/q.
        training: if False, returns ``input``.
        inplace: write the result into ``input``.
        generator: draws the random state; default: torch's generator of the input's device.
        seed: an int that makes the call a pure function of its arguments: it uses the mask of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.

    Returns:
        A tensor of the shape and memory format of ``input``, differentiable any number of times.

    Warns:
        UserWarning: ``input`` does not have 4 or 5 dimensions.

    Raises:
        ValueError: p out of range; more than one of generator, seed and rng_state.
        RuntimeError: no dimensions, in training; an integer dtype (NotImplementedError for complex
            numbers and 8-bit floats, as in torch); no kernels for the device; ``inplace`` on a leaf
            that requires grad, or on elements that share memory.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> F.dropout3d(torch.ones(1, 3, 4, 8, 8), 0.5, seed=1).amax((2, 3, 4))  # of each channel
        tensor([[0., 2., 0.]])
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            dropout3d,
            (input,),
            input,
            p,
            training,
            inplace,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
        )
    p = check_probability_and_input(p, input)
    if input.dim() not in (4, 5):
        _warn_of_dimensions("dropout3d", input.dim(), "[N, C, D, H, W] or [C, D, H, W]")
    first_shared = 2 if input.dim() == 5 else 1
    return _drop_channels(input, first_shared, p, training, inplace, generator, seed, rng_state)


def _drop_channels(
    input: Tensor,
    first_shared: int,
    p: float,
    training: bool,
    inplace: bool,
    generator: torch.Generator | None,
    seed: int | None,
    rng_state: Tensor | None,
) -> Tensor:
    """Dropout with a mask that is shared along all dimensions from ``first_shared`` on."""
    if training and 0 < p < 1 and input.numel() > 0:  # what torch checks
        check_channels(input, first_shared)
    return dropout(
        input,
        p,
        training,
        inplace,
        broadcast_dims=range(first_shared, input.dim()),
        generator=generator,
        seed=seed,
        rng_state=rng_state,
    )


def check_channels(input: Tensor, dimensions: int) -> None:
    if input.dim() < dimensions:
        raise RuntimeError(
            "Feature dropout requires at least 2 dimensions in the input, one of them for the "
            f"batch, which dropout3d adds; got shape {list(input.shape)}"
        )


def _warn_of_dimensions(name: str, dimensions: int, wanted: str) -> None:
    warnings.warn(
        f"{name}: Received a {dimensions}-D input to {name}, which is deprecated and will result "
        "in an error in a future release. To retain the behavior and silence this warning, please "
        f"use dropout instead. {name} drops channels of {wanted}.",
        stacklevel=3,
    )
