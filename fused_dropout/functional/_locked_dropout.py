"""Locked dropout: one mask for all steps of a sequence."""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import handle_torch_function, has_torch_function_unary

from fused_dropout._core import checks
from fused_dropout.functional._dropout import dropout
from fused_dropout.functional._packed_sequence import on_padded

Sequences = TypeVar("Sequences", Tensor, PackedSequence)


def locked_dropout(
    input: Sequences,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    batch_first: bool = False,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
) -> Sequences:
    """Dropout of a sequence with one mask for all its steps.

    Source: Gal and Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent Neural
    Networks", NeurIPS 2016; "locked" in Merity et al., "Regularizing and Optimizing LSTM Language
    Models", ICLR 2018.

    Args:
        input: ``[T, N, ...]``, or ``[N, T, ...]`` with ``batch_first``; or a PackedSequence, whose
            masks are those of the same sequences padded, ``[T, N, ...]``.
        batch_first: which of the first two dimensions is time; says nothing of a PackedSequence.

    The other arguments and errors as :func:`dropout`; RuntimeError for fewer than 2 dimensions.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            locked_dropout,
            (input,),
            input,
            p,
            training,
            inplace,
            batch_first=batch_first,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
        )
    if isinstance(input, PackedSequence):
        sources: Any = {"generator": generator, "seed": seed, "rng_state": rng_state}
        drop = partial(locked_dropout, p=checks.check_probability(p), **sources)
        return on_padded(drop, input, inplace) if training else input
    checks.check_dense(input, "input")
    time = 1 if batch_first else 0
    if input.dim() < 2:
        wanted = "[N, T, ...]" if batch_first else "[T, N, ...]"
        raise RuntimeError(f"input must have shape {wanted}, got {list(input.shape)}")
    return dropout(
        input,
        p,
        training,
        inplace,
        broadcast_dims=(time,),
        generator=generator,
        seed=seed,
        rng_state=rng_state,
    )
