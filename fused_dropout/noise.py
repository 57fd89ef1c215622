"""The package's continuous noise itself, for tests and for whoever wants to verify an op."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fused_dropout import _ext
from fused_dropout._checks import as_shape
from fused_dropout.rng import make_rng_state

DTYPES = (torch.float32, torch.float64)


def _draw(
    name: str,
    size: int | Sequence[int],
    seed: int,
    offset: int,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> Tensor:
    sizes = as_shape(size, "size")
    if dtype not in DTYPES:
        raise TypeError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    if device is not None:
        _ext.require_backend(torch.device(device))  # explains more than torch, which lacks it too
    state = make_rng_state(seed, offset, device)
    _ext.require_backend(state.device)
    drawn: Tensor = getattr(_ext.operators(), name)(state, sizes, dtype)
    return drawn


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
    return _draw("uniform_noise", size, seed, offset, dtype, device)


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
    return _draw("normal_noise", size, seed, offset, dtype, device)
