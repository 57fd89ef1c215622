"""The random state of an operator: an int64[2] tensor (seed, offset), and where it comes from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_dropout._core.checks import as_int, check_dense
from fused_dropout._core.private_torch import modes_active, transforms_active

_LOW, _HIGH = -(2**63), 2**63 - 1
_PHILOX_CALL = 4  # torch counts a generator's offset in random words, four to a call


def _wrap(value: int, name: str) -> int:
    """``value`` modulo 2^64 as int64 holds it; the range is that of torch.manual_seed."""
    value = as_int(value, name)
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"{name} must be in [-2^63, 2^64 - 1], got {value}")
    return value - 2**64 if value >= 2**63 else value


def make_rng_state(seed: int, offset: int = 0, device: torch.device | str | None = None) -> Tensor:
    """The random state (seed, offset), for any operator's ``rng_state=``.

    Args:
        seed, offset: ints in the range that :func:`torch.manual_seed` takes, modulo 2^64.
        device: where the state is kept; default: torch's default device. An operator takes it from
            the CPU or from its own device.

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


def _check_device(generator: torch.Generator, device: torch.device) -> None:
    """Raises for a generator of another device type, as torch's operators do."""
    if generator.device.type != device.type:
        raise RuntimeError(
            f"generator must be on the input's device type '{device.type}', got "
            f"'{generator.device.type}'"
        )


def draw_rng_state(tensor: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A fresh random state from ``generator``, or from torch's default one of ``tensor``'s device.

    ``torch.manual_seed`` and activation checkpointing therefore work as for torch's own dropout.

    On the CPU it is two words of the generator. On a GPU it is the generator's seed and offset, by
    value: no launch, and nothing waits. While a CUDA graph is captured, and under torch.compile,
    torch.func's transforms and modes, it is drawn on the device, at the price of one launch: then
    every replay and every run of a compiled graph draws anew, torch knows that the call is random,
    and ``vmap`` applies its ``randomness``.
    """
    if tensor.is_cuda and not _drawn_on_device():
        return _state_of_cuda_generator(tensor.device, generator)
    if generator is None:  # torch.compile traces this form only
        return torch.randint(_LOW, _HIGH, (2,), device=tensor.device)
    return torch.randint(_LOW, _HIGH, (2,), device=tensor.device, generator=generator)


def _drawn_on_device() -> bool:
    """Whether somebody must see that a random state for a GPU is drawn."""
    return (
        torch.compiler.is_compiling()
        or transforms_active()
        or modes_active()
        or torch.cuda.is_current_stream_capturing()
    )


def _state_of_cuda_generator(device: torch.device, generator: Any) -> Tensor:
    """(seed, offset) of the generator on the CPU; the generator moves on by one Philox call."""
    if generator is None:
        index = torch.cuda.current_device() if device.index is None else device.index
        generator = torch.cuda.default_generators[index]
    if hasattr(generator, "philox_state"):  # since torch 2.14: safe against other threads
        seed, offset, _ = generator.philox_state(_PHILOX_CALL)
        return torch.cat((seed, offset))
    offset = generator.get_offset()
    generator.set_offset(offset + _PHILOX_CALL)
    return torch.tensor(
        [_wrap(generator.initial_seed(), "seed"), _wrap(offset, "offset")], device="cpu"
    )


def check_rng_state(rng_state: Tensor, device: torch.device) -> Tensor:
    """``rng_state`` if it is usable on ``device``; raises an error that says what it should be."""
    check_dense(rng_state, "rng_state")
    if rng_state.dtype == torch.uint64:  # a key of torch.func._random holds the same two numbers
        rng_state = rng_state.view(torch.int64)
    if rng_state.dtype != torch.int64 or tuple(rng_state.shape) != (2,):
        raise ValueError(
            "rng_state must be an int64 tensor of shape [2] (seed, offset), got "
            f"{rng_state.dtype} {list(rng_state.shape)}"
        )
    if rng_state.device != device and rng_state.device.type != "cpu":
        raise RuntimeError(f"rng_state must be on the CPU or on {device}, got {rng_state.device}")
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
    tensor: Tensor,
    generator: torch.Generator | None,
    seed: int | None,
    rng_state: Tensor | None,
) -> Tensor:
    """The random state that an operator's ``generator=``, ``seed=`` and ``rng_state=`` ask for.

    It suits an operator on ``tensor``. At most one source is given; operators call
    :func:`check_single_source` even when nothing is drawn. A key of ``torch.func._random`` counts
    as an ``rng_state``.
    """
    if rng_state is not None:
        return check_rng_state(rng_state, tensor.device)
    if seed is None:
        if generator is None and tensor.is_cpu:  # the common case, which small calls pay for
            return torch.randint(_LOW, _HIGH, (2,), device=tensor.device)
        if generator is not None:
            _check_device(generator, tensor.device)
        return draw_rng_state(tensor, generator)
    if torch.compiler.is_compiling():  # on the device: CUDA graphs keep no tensor of the CPU
        return make_rng_state(seed, 0, tensor.device)
    return torch.tensor([_wrap(seed, "seed"), 0], device="cpu")


def rng_state_on_device(
    tensor: Tensor,
    generator: torch.Generator | None,
    seed: int | None,
    rng_state: Tensor | None,
) -> Tensor:
    """The same on the tensor's device, where operators that only draw are called.

    Nothing waits for the device, and a seed is no copy from the host, which fails in a CUDA graph.
    """
    if seed is not None:
        return make_rng_state(seed, 0, tensor.device)
    state = resolve_rng_state(tensor, generator, None, rng_state)
    return state.to(tensor.device, non_blocking=True)


def unused_rng_state() -> Tensor:
    """A random state for a call that draws nothing, so that its generator stays where it is."""
    return torch.zeros(2, dtype=torch.int64, device="cpu")
