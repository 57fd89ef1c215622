"""Dropout of whole words: rows of an embedding."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding
from torch.overrides import handle_torch_function, has_torch_function

from fused_dropout._core import checks
from fused_dropout._core.rates import inverse, keep_rate
from fused_dropout._core.rng import check_single_source
from fused_dropout.functional._dropout import dropout


def embedding_dropout(
    input: Tensor,
    weight: Tensor,
    p: float = 0.5,
    training: bool = True,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    """An embedding whose rows are dropped with probability ``p``, for the whole batch.

    A word that occurs several times is dropped in all places or in none, and the others are divided
    by the keep rate: ``torch.nn.functional.embedding(input, kept[:, None] * weight / q)`` with
    ``kept = fused_dropout.mask(num_embeddings, p, seed=seed, offset=offset)``. Only the rows that
    are looked up are touched, not the whole table. A dropped word is 0, and so is its row's
    gradient, even where the row or the gradient is infinite or NaN.

    Source: Gal and Ghahramani, "A Theoretically Grounded Application of Dropout in Recurrent Neural
    Networks", NeurIPS 2016, section 4.2; ``embedded_dropout`` of AWD-LSTM (Merity, Keskar and
    Socher, ICLR 2018, section 4.3).

    Args:
        input: indices, int32 or int64, any shape.
        weight: ``[num_embeddings, embedding_dim]``; float32, bfloat16, float16 or float64.
        p: drop probability in [0, 1]. The keep rate is q = rint((1 - p) 2^16) / 2^16, and the scale
            is exactly 1/q.
        training: if False, the plain embedding.
        padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse: as of
            :func:`torch.nn.functional.embedding`. Rows are renormalised before they are dropped.
        generator: draws the random state; default: torch's generator of the weight's device.
        seed: an int that makes the call a pure function of its arguments: it uses the mask of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.

    Returns:
        A tensor ``[*input.shape, embedding_dim]``, differentiable any number of times.

    Raises:
        ValueError: p out of range; more than one of generator, seed and rng_state.
        RuntimeError: weight that is no matrix of a floating dtype; input that is not of indices; no
            kernels for the device.
        IndexError: an index out of range.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> words = torch.tensor([0, 1, 2, 1])
        >>> F.embedding_dropout(words, torch.ones(3, 2), 0.5, seed=1)
        tensor([[0., 0.],
                [2., 2.],
                [0., 0.],
                [2., 2.]])
    """
    if has_torch_function((input, weight)):
        return handle_torch_function(
            embedding_dropout,
            (input, weight),
            input,
            weight,
            p,
            training,
            padding_idx,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            sparse,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
        )
    p = checks.check_probability(p)
    checks.check_dense(input, "input")
    checks.check_dense(weight, "weight")
    check_single_source(generator, seed, rng_state)
    if weight.dim() != 2:
        raise RuntimeError(
            f"weight must have shape [num_embeddings, embedding_dim], got {list(weight.shape)}"
        )
    q = keep_rate(p)
    drops = training and q < 1.0
    if drops:
        checks.check_float_tensor(weight, "weight")
    words = embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    if not drops:
        return words
    ones = torch.ones(len(weight), device=weight.device)
    kept = dropout(ones, p, generator=generator, seed=seed, rng_state=rng_state) > 0
    # where, not a product: a dropped infinity must leave 0, not NaN, in the gradient too.
    return torch.where(kept[input].unsqueeze(-1), words * inverse(q), 0.0)
