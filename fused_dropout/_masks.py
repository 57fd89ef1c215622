"""Masks and noise drawn by themselves: bools, packed bits, uniform and normal numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fused_dropout._core import checks, extension
from fused_dropout._core.rng import make_rng_state

NOISE_DTYPES = (torch.float32, torch.float64)


def mask(
    shape: int | Sequence[int],
    p: float,
    *,
    seed: int,
    offset: int = 0,
    stream: int = 0,
    digits: int = 16,
    device: torch.device | str | None = None,
) -> Tensor:
    """The keep mask of ``shape``: True with probability q = rint((1 - p) 2^digits) / 2^digits.

    A pure function of its arguments: the same on every device, instruction set and number of
    threads. The last dimension is the contract's columns, the product of the others its rows.

    Args:
        shape: any shape; an int is a vector.
        p: drop probability in [0, 1].
        seed, offset: ints in the range that :func:`torch.manual_seed` takes, modulo 2^64.
        stream: 0..127; masks of different streams are independent.
        digits: 1..32 binary digits of the keep rate.
        device: where to draw; default: torch's default device, the CPU unless you changed it.

    Returns:
        bool tensor of ``shape``, True = kept.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range, named in the message.
        RuntimeError: a device that this build has no kernels for.
    """
    sizes = checks.as_shape(shape, "shape")
    drawn = _draw_mask("mask", sizes, p, seed, offset, stream, digits, device)
    return drawn.reshape(sizes)


def packed_mask(
    shape: int | Sequence[int],
    p: float,
    *,
    seed: int,
    offset: int = 0,
    stream: int = 0,
    digits: int = 16,
    device: torch.device | str | None = None,
) -> Tensor:
    """:func:`mask` with 32 elements of the last dimension in each word, bit 0 first.

    Returns:
        uint32 tensor of shape ``[*shape[:-1], ceil(shape[-1] / 32)]``; bits past the end are 0.
    """
    sizes = checks.as_shape(shape, "shape")
    drawn = _draw_mask("packed_mask", sizes, p, seed, offset, stream, digits, device)
    words = drawn.shape[1]
    return drawn.reshape(*sizes[:-1], words).view(torch.uint32)


def uniform_noise(
    size: int | Sequence[int],
    *,
    seed: int,
    offset: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Uniform numbers in (0, 1), a pure function of (seed, offset, element).

    Elements count in row-major order. Element k takes word k % 4 of the Philox4x32-10 call of
    elements 4 (k // 4) and following, on stream 2, as ((word >> 9) + 1/2) 2^-23. Every device gives
    the same bits, in float32 and float64 the same numbers.

    Args:
        size: any shape; an int is a vector.
        seed, offset: ints in the range that :func:`torch.manual_seed` takes, modulo 2^64.
        dtype: torch.float32 or torch.float64.
        device: where to draw; default: torch's default device.

    Raises:
        TypeError, ValueError: an argument of the wrong type or out of range.
        RuntimeError: a device that this build has no kernels for.
    """
    return _draw_noise("uniform_noise", size, seed, offset, dtype, device)


def normal_noise(
    size: int | Sequence[int],
    *,
    seed: int,
    offset: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Standard normal numbers, a function of :func:`uniform_noise` of the same arguments.

    Of each two neighbouring uniforms (a, b), elements 2 k and 2 k + 1, come
    ``sqrt(-2 ln a) cos(2 pi b)`` and ``sqrt(-2 ln a) sin(2 pi b)``. The largest is 5.8 in size.
    Devices round differently: a float32 is within 4 units in the last place of the exact number.

    Source: Box and Muller, "A Note on the Generation of Random Normal Deviates", 1958. Arguments
    and errors as :func:`uniform_noise`.
    """
    return _draw_noise("normal_noise", size, seed, offset, dtype, device)


def _draw_mask(
    name: str,
    shape: tuple[int, ...],
    p: float,
    seed: int,
    offset: int,
    stream: int,
    digits: int,
    device: torch.device | str | None,
) -> Tensor:
    """The operator's [rows, .] result for the contract's view of ``shape`` as a matrix."""
    p = checks.check_probability(p)
    checks.check_int(stream, "stream", 0, 127)
    checks.check_int(digits, "digits", 1, 32)
    rows, cols = math.prod(shape[:-1]), shape[-1] if shape else 1
    return _draw(name, _state_on(device, seed, offset), rows, cols, p, stream, digits)


def _draw_noise(
    name: str,
    size: int | Sequence[int],
    seed: int,
    offset: int,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> Tensor:
    sizes = checks.as_shape(size, "size")
    if dtype not in NOISE_DTYPES:
        raise TypeError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    return _draw(name, _state_on(device, seed, offset), sizes, dtype)


def _state_on(device: torch.device | str | None, seed: int, offset: int) -> Tensor:
    """A random state on a device that there are kernels for."""
    if device is not None:
        extension.require_backend(torch.device(device))  # says more than torch, which lacks it too
    state = make_rng_state(seed, offset, device)
    extension.require_backend(state.device)
    return state


def _draw(name: str, *arguments: Any) -> Tensor:
    drawn: Tensor = getattr(extension.operators(), name)(*arguments)
    return drawn
