"""The random state of an operator: an int64[2] tensor (seed, offset) on the device that draws."""

from __future__ import annotations

import torch
from torch import Tensor

from fused_dropout._checks import as_int


def _wrap(value: int, name: str) -> int:
    """``value`` modulo 2^64 as int64 holds it; the range is that of torch.manual_seed."""
    value = as_int(value, name)
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"{name} must be in [-2^63, 2^64 - 1], got {value}")
    value %= 2**64
    return value - 2**64 if value >= 2**63 else value


def make_rng_state(seed: int, offset: int = 0, device: torch.device | str | None = None) -> Tensor:
    """The random state (seed, offset), for any operator's ``rng_state=``.

    Args:
        seed, offset: ints in the range that :func:`torch.manual_seed` takes, modulo 2^64.
        device: where the operator will run; default: torch's default device.

    Returns:
        int64 tensor of shape [2].

    Raises:
        TypeError, ValueError: ``seed`` or ``offset`` is no int, or out of range.
        RuntimeError: a device that torch lacks.
    """
    numbers = _wrap(seed, "seed"), _wrap(offset, "offset")
    # Filled on the device: to copy from the host would wait for it, and fail in a CUDA graph.
    try:
        state = torch.full((2,), numbers[0], dtype=torch.int64, device=device)
    except AssertionError as error:  # a torch without the device's backend
        raise RuntimeError(
            f"device must be one that this torch has, got {device}: {error}"
        ) from None
    state[1:].fill_(numbers[1])
    return state


def check_generator(generator: torch.Generator | None, device: torch.device) -> None:
    """Raises a RuntimeError, as torch's own operators, for a generator of another device type."""
    if generator is not None and generator.device.type != device.type:
        raise RuntimeError(
            f"generator must be on the input's device type '{device.type}', got "
            f"'{generator.device.type}'"
        )


def draw_rng_state(device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """A fresh random state from ``generator``, or from torch's default generator of ``device``.

    ``torch.manual_seed`` and activation checkpointing therefore work as for torch's own dropout.
    """
    low, high = -(2**63), 2**63 - 1
    if generator is None:  # torch.compile traces this form only
        return torch.randint(low, high, (2,), device=device)
    return torch.randint(low, high, (2,), device=device, generator=generator)


def check_rng_state(rng_state: Tensor, device: torch.device) -> Tensor:
    """``rng_state`` if it is usable on ``device``; raises an error that says what it should be."""
    if not isinstance(rng_state, Tensor):
        raise TypeError(f"rng_state must be a Tensor, got {type(rng_state).__name__}")
    if rng_state.dtype != torch.int64 or tuple(rng_state.shape) != (2,):
        raise ValueError(
            "rng_state must be an int64 tensor of shape [2] (seed, offset), got "
            f"{rng_state.dtype} {list(rng_state.shape)}"
        )
    if rng_state.device != device:
        raise RuntimeError(f"rng_state must be on {device}, got {rng_state.device}")
    return rng_state.contiguous()


def check_single_source(
    generator: torch.Generator | None, seed: int | None, rng_state: Tensor | None
) -> None:
    """At most one of an operator's three random sources is given, and of the right type."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    sources = {"generator": generator, "seed": seed, "rng_state": rng_state}
    given = [name for name, value in sources.items() if value is not None]
    if len(given) > 1:
        raise ValueError(
            f"give at most one of generator, seed and rng_state, got {' and '.join(given)}"
        )


def resolve_rng_state(
    device: torch.device,
    generator: torch.Generator | None,
    seed: int | None,
    rng_state: Tensor | None,
) -> Tensor | None:
    """The random state that an operator's ``generator=``, ``seed=`` and ``rng_state=`` ask for.

    None means that the operator's ``.generator`` overload is to take it from the generator, which
    on a GPU saves a launch. At most one source is given; operators call
    :func:`check_single_source` even when nothing is drawn.
    """
    if seed is not None:
        return make_rng_state(seed, 0, device)
    if rng_state is not None:
        return check_rng_state(rng_state, device)
    check_generator(generator, device)
    return draw_rng_state(device, generator) if _must_draw_before() else None


def _must_draw_before() -> bool:
    """Whether the random state must come from an operator that torch knows to be random.

    torch.compile would merge two equal calls of ours into one, and vmap knows no ``randomness=`` of
    operators but its own.
    """
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
