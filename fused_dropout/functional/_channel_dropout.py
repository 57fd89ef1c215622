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
    """Drops whole channels of ``[N, C, L]`` or ``[C, L]``, as torch's function of this name.

    Channel c of example n has element n C + c of the mask (see :func:`dropout`).

    Source: Tompson et al., "Efficient Object Localization Using Convolutional Networks", CVPR 2015.
    Arguments and errors as :func:`dropout`; RuntimeError for another number of dimensions.
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
    """Drops whole channels of ``[N, C, H, W]``, as torch's function of this name.

    Like torch's, it reads 3 dimensions as ``[N, C, L]``, with a warning, and takes any number from
    2 on.
    Source, arguments and errors as :func:`dropout1d`.
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
    """Drops whole channels of ``[N, C, D, H, W]`` or ``[C, D, H, W]``, as torch's of this name.

    Like torch's, it takes fewer dimensions with a warning, the first of them for C. Source,
    arguments and errors as :func:`dropout1d`.
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
