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
    threads. The mask contract sees a matrix: its columns are the last dimension, its rows all
    others.

    Args:
        shape: the mask's shape; an int is a vector.
        p: drop probability in [0, 1].
        seed, offset: ints in the range that :func:`torch.manual_seed` takes, modulo 2^64.
        stream: 0 to 127; masks of different streams are independent.
        digits: number of binary digits of the keep rate q = rint((1 - p) 2^digits) / 2^digits, 1 to
            32.
        device: where to draw; default: torch's default device, the CPU unless you changed it.

    Returns:
        A bool tensor of ``shape``, True where an element is kept.

    Raises:
        ValueError: an argument out of range, which the message names.
        TypeError: an argument of the wrong type.
        RuntimeError: a device that this build has no kernels for.

    Example:
        >>> import fused_dropout
        >>> fused_dropout.mask(4, 0.5, seed=1)
        tensor([False,  True, False, False])
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
    """The keep mask of ``shape`` as bits: 32 elements of the last dimension in each word.

    Bit k % 32 of word k // 32 is element k of :func:`fused_dropout.mask` with the same arguments, 1
    for True. A pure function of its arguments: the same on every device, instruction set and number
    of threads.

    Args:
        shape: the mask's shape; an int is a vector.
        p: drop probability in [0, 1].
        seed, offset: ints in the range that :func:`torch.manual_seed` takes, modulo 2^64.
        stream: 0 to 127; masks of different streams are independent.
        digits: number of binary digits of the keep rate q = rint((1 - p) 2^digits) / 2^digits, 1 to
            32.
        device: where to draw; default: torch's default device, the CPU unless you changed it.

    Returns:
        A uint32 tensor of shape ``[*shape[:-1], ceil(shape[-1] / 32)]``; bits past the end are 0.

    Raises:
        ValueError: an argument out of range, which the message names.
        TypeError: an argument of the wrong type.
        RuntimeError: a device that this build has no kernels for.

    Example:
        >>> import fused_dropout
        >>> fused_dropout.packed_mask(4, 0.5, seed=1)  # 2 = 0b0010: element 1 is kept
        tensor([2], dtype=torch.uint32)
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
        size: the tensor's shape; an int is a vector.
        seed, offset: ints in the range that :func:`torch.manual_seed` takes, modulo 2^64.
        dtype: torch.float32 or torch.float64.
        device: where to draw; default: torch's default device, the CPU unless you changed it.

    Returns:
        A tensor of shape ``size`` and type ``dtype``.

    Raises:
        ValueError: an argument out of range, which the message names.
        TypeError: an argument of the wrong type.
        RuntimeError: a device that this build has no kernels for.

    Example:
        >>> import fused_dropout
        >>> fused_dropout.uniform_noise(3, seed=1)
        tensor([0.6027, 0.3202, 0.1144])
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
    """Standard normal numbers, a pure function of (seed, offset, element).

    They are made of :func:`fused_dropout.uniform_noise` of the same arguments: two neighbouring
    uniforms a and b, elements 2 k and 2 k + 1, become ``sqrt(-2 ln a) cos(2 pi b)`` and
    ``sqrt(-2 ln a) sin(2 pi b)``. The largest is 5.8 in size. Devices round differently: a float32
    is within 4 units in the last place of the exact number.

    Source: Box and Muller, "A Note on the Generation of Random Normal Deviates", 1958.

    Args:
        size: the tensor's shape; an int is a vector.
        seed, offset: ints in the range that :func:`torch.manual_seed` takes, modulo 2^64.
        dtype: torch.float32 or torch.float64.
        device: where to draw; default: torch's default device, the CPU unless you changed it.

    Returns:
        A tensor of shape ``size`` and type ``dtype``.

    Raises:
        ValueError: an argument out of range, which the message names.
        TypeError: an argument of the wrong type.
        RuntimeError: a device that this build has no kernels for.

    Example:
        >>> import fused_dropout
        >>> fused_dropout.normal_noise(3, seed=1)
        tensor([-0.4295,  0.9100, -1.0072])
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
    if rows * -(-cols // 128) > 2**48:
        raise ValueError(f"shape must have at most 2^48 groups of 128 columns, got {shape}")
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
