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
    """Dropout of sequences with one mask for all steps of a sequence.

    Equivalent to :func:`fused_dropout.functional.dropout` with ``broadcast_dims`` set to the
    dimension of time: an element of an example's features is dropped in every step or in none, with
    probability ``p``, and the others are divided by the keep rate. Backward draws the mask again
    from 16 bytes of random state.

    The mask has the shape of one step, ``[N, ...]``; its elements in row-major order are those of
    ``fused_dropout.mask(numel, p, seed=seed, offset=offset)``. Also called variational dropout.

    Source: Gal and Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent Neural
    Networks", NeurIPS 2016; "locked" in Merity et al., "Regularizing and Optimizing LSTM Language
    Models", ICLR 2018.

    Args:
        input: ``[T, N, ...]``, or ``[N, T, ...]`` with ``batch_first``; any strides; float32,
            bfloat16, float16 or float64. Or a PackedSequence, whose masks are those of the same
            sequences padded, ``[T, N, ...]``.
        p: drop probability in [0, 1]. The keep rate is q = rint((1 - p) 2^16) / 2^16, and the scale
            is exactly 1/q.
        training: if False, returns ``input``.
        inplace: write the result into ``input``, or into the data of a PackedSequence.
        batch_first: whether the first dimension counts the examples and the second one the steps;
            not used for a PackedSequence.
        generator: draws the random state; default: torch's generator of the input's device.
        seed: an int that makes the call a pure function of its arguments: it uses the mask of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.

    Returns:
        A tensor or PackedSequence as ``input``, differentiable any number of times.

    Raises:
        ValueError: p out of range; more than one of generator, seed and rng_state.
        RuntimeError: fewer than 2 dimensions; an integer dtype (NotImplementedError for complex
            numbers and 8-bit floats, as in torch); no kernels for the device; ``inplace`` on a leaf
            that requires grad, or on elements that share memory.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> F.locked_dropout(torch.ones(3, 1, 4), 0.5, seed=1)[:, 0]  # 3 steps of one sequence
        tensor([[0., 2., 0., 0.],
                [0., 2., 0., 0.],
                [0., 2., 0., 0.]])
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
