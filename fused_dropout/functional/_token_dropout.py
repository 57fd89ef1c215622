"""Dropout of whole tokens: zeroed in place, or taken out of the sequence."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from fused_dropout._core import checks, extension
from fused_dropout._core.rng import check_single_source, rng_state_on_device
from fused_dropout.functional._dropout import dropout


def token_dropout(
    input: Tensor,
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    """Zeroes whole tokens of sequences ``[N, L, D]`` with probability ``p``, scales up the others.

    The tokens that are kept are divided by the keep rate. Equivalent to
    :func:`fused_dropout.functional.dropout` with ``broadcast_dims=(-1,)``, whatever dimensions come
    before the last one. Backward draws the mask again from 16 bytes of random state. It drops
    positions of a sequence; :func:`fused_dropout.functional.patch_dropout` makes the sequence
    shorter instead.

    Token l of example n has element ``n * L + l`` of ``fused_dropout.mask(N * L, p, seed=seed,
    offset=offset)``. A dropped token is 0, and so is its gradient, even where ``input`` or the
    gradient is infinite or NaN.

    Source: the word dropout of Iyyer et al., "Deep Unordered Composition Rivals Syntactic Methods
    for Text Classification", ACL 2015, section 3, with dropout's scale.

    Args:
        input: ``[..., L, D]``, or one token ``[D]``; any strides; float32, bfloat16, float16 or
            float64.
        p: drop probability in [0, 1]. The keep rate is q = rint((1 - p) 2^16) / 2^16, and the scale
            is exactly 1/q.
        training: if False, returns ``input``.
        inplace: write the result into ``input``.
        generator: draws the random state; default: torch's generator of the input's device.
        seed: an int that makes the call a pure function of its arguments: it uses the mask of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.

    Returns:
        A tensor of the shape and memory format of ``input``, differentiable any number of times.

    Raises:
        ValueError: p out of range; more than one of generator, seed and rng_state.
        RuntimeError: a tensor without dimensions; an integer dtype (NotImplementedError for complex
            numbers and 8-bit floats, as in torch); no kernels for the device; ``inplace`` on a leaf
            that requires grad, or on elements that share memory.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> F.token_dropout(torch.ones(1, 4, 2), 0.5, seed=1)
        tensor([[[0., 0.],
                 [2., 2.],
                 [0., 0.],
                 [0., 0.]]])
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            token_dropout,
            (input,),
            input,
            p,
            training,
            inplace,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
        )
    p = checks.check_probability_and_input(p, input)
    if input.dim() == 0:
        raise RuntimeError("input must have shape [..., L, D], got []")
    return dropout(
        input,
        p,
        training,
        inplace,
        broadcast_dims=(-1,),
        generator=generator,
        seed=seed,
        rng_state=rng_state,
    )


@overload
def patch_dropout(
    x: Tensor,
    prob: float = ...,
    num_prefix_tokens: int = ...,
    ordered: bool = ...,
    training: bool = ...,
    return_indices: Literal[False] = ...,
    *,
    generator: torch.Generator | None = ...,
    seed: int | None = ...,
    rng_state: Tensor | None = ...,
) -> Tensor: ...
@overload
def patch_dropout(
    x: Tensor,
    prob: float = ...,
    num_prefix_tokens: int = ...,
    ordered: bool = ...,
    training: bool = ...,
    return_indices: bool = ...,
    *,
    generator: torch.Generator | None = ...,
    seed: int | None = ...,
    rng_state: Tensor | None = ...,
) -> Tensor | tuple[Tensor, Tensor | None]: ...
def patch_dropout(
    x: Tensor,
    prob: float = 0.5,
    num_prefix_tokens: int = 1,
    ordered: bool = False,
    training: bool = True,
    return_indices: bool = False,
    *,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor | None]:
    """Keeps some random patches of each sample and takes the others out of the sequence.

    Equivalent to timm's PatchDropout, whose arguments it has: of L patches ``max(1, int(L * (1 -
    prob)))`` stay in each sample, and so do all prefix tokens. Nothing is scaled. In evaluation the
    sequence is whole.

    The choice depends on the random state alone, the same on every device, and nothing waits for
    the device: the patches that stay are those with the least numbers of
    ``fused_dropout.uniform_noise((N, L), seed=seed, offset=offset)``, by a stable sort.

    Source: Liu et al., "PatchDropout: Economizing Vision Transformers Using Patch Dropout", WACV
    2023, section 3.

    Args:
        x: ``[N, num_prefix_tokens + L, ...]``, any strides; float32, bfloat16, float16, float64,
            bool, uint8, int8, int16, int32 or int64.
        prob: the part of the patches to drop, in [0, 1]; at least one stays.
        num_prefix_tokens: of the first tokens, such as a class token, which always stay.
        ordered: keep the patches in their order. If False, the default as in timm, they come in the
            order of their numbers: what follows must tell them apart by what they hold.
        training: if False, returns ``x``.
        return_indices: return which patches stay as well.
        generator: draws the random state; default: torch's generator of the device of ``x``.
        seed: an int that makes the call a pure function of its arguments: it uses the numbers of
            seed ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.

    Returns:
        ``[N, num_prefix_tokens + K, ...]``, where K patches stay, differentiable any number of
        times. With ``return_indices`` a pair of it and an int64 tensor ``[N, K]``, the patches'
        numbers counted behind the prefix; None where nothing is dropped.

    Raises:
        ValueError: prob or num_prefix_tokens out of range; more than one of generator, seed and
            rng_state.
        RuntimeError: fewer than 2 dimensions, or fewer tokens than ``num_prefix_tokens``; another
            dtype (NotImplementedError); no kernels for the device.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> x = torch.arange(5.0).view(1, 5, 1)  # a class token and 4 patches
        >>> F.patch_dropout(x, 0.5, seed=1).flatten()
        tensor([0., 3., 2.])
        >>> F.patch_dropout(x, 0.5, ordered=True, return_indices=True, seed=1)[1]
        tensor([[1, 2]])
    """
    if has_torch_function_unary(x):
        return handle_torch_function(
            patch_dropout,
            (x,),
            x,
            prob,
            num_prefix_tokens,
            ordered,
            training,
            return_indices,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
        )
    prob = checks.check_probability(prob, "prob")
    prefix = checks.check_int(num_prefix_tokens, "num_prefix_tokens", 0)
    checks.check_bool(ordered, "ordered")
    checks.check_bool(return_indices, "return_indices")
    check_single_source(generator, seed, rng_state)
    checks.check_dense(x, "x")
    checks.check_number_tensor(x, "x")
    if x.dim() < 2 or x.shape[1] < prefix:
        raise RuntimeError(f"x must have shape [N, {prefix} + patches, ...], got {list(x.shape)}")
    if not training or prob == 0.0:
        return (x, None) if return_indices else x
    extension.require_kernels(x)
    state = rng_state_on_device(x, generator, seed, rng_state)
    patches = x.shape[1] - prefix
    keys = extension.operators().uniform_noise(state, (x.shape[0], patches), torch.float32)
    stay = torch.argsort(keys, dim=1, stable=True)[:, : max(1, int(patches * (1.0 - prob)))]
    if ordered:
        stay = stay.sort(dim=1)[0]
    output = _tokens(x, stay, prefix)
    return (output, stay) if return_indices else output


def _tokens(x: Tensor, stay: Tensor, prefix: int) -> Tensor:
    """The prefix and the patches that stay, as rows of one matrix: a gather takes 20 times as long.

    No row is chosen twice, so that the sums of its gradient have one term each.
    """
    samples, tokens = x.shape[:2]
    first = torch.arange(samples, device=x.device).unsqueeze(1) * tokens
    rows = first + prefix + stay
    if prefix > 0:
        rows = torch.cat((first + torch.arange(prefix, device=x.device), rows), 1)
    chosen = x.flatten(0, 1).index_select(0, rows.flatten())
    return chosen.reshape(*rows.shape, *x.shape[2:])
