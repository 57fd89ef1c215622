"""The package's Bernoulli mask itself, as bools or packed bits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fused_dropout import _checks, _ext
from fused_dropout.rng import make_rng_state


def _draw(
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
    p = _checks.check_probability(p)
    _checks.check_int(stream, "stream", 0, 127)
    _checks.check_int(digits, "digits", 1, 32)
    if device is not None:
        _ext.require_backend(torch.device(device))  # explains more than torch, which lacks it too
    state = make_rng_state(seed, offset, device)
    _ext.require_backend(state.device)
    rows, cols = math.prod(shape[:-1]), shape[-1] if shape else 1
    draw = getattr(_ext.operators(), name)
    result: Tensor = draw(state, rows, cols, p, stream, digits)
    return result


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
    sizes = _checks.as_shape(shape, "shape")
    drawn = _draw("mask", sizes, p, seed, offset, stream, digits, device)
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
    sizes = _checks.as_shape(shape, "shape")
    drawn = _draw("packed_mask", sizes, p, seed, offset, stream, digits, device)
    words = drawn.shape[1]
    return drawn.reshape(*sizes[:-1], words).view(torch.uint32)
