"""DropBlock: dropout of contiguous regions of a feature map, in one, two or three dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

from fused_dropout._core import checks, extension
from fused_dropout._core.drop_block_gamma import exact_gamma, paper_gamma
from fused_dropout._core.rng import check_single_source, resolve_rng_state, unused_rng_state
from fused_dropout._ops.drop_block import DropBlock, DropBlockInPlace

Normalization = Literal["batch", "sample", "none"]
NORMALIZATIONS = get_args(Normalization)
Gamma = Literal["paper", "exact"]
GAMMAS = get_args(Gamma)


def drop_block1d(
    input: Tensor,
    p: float,
    block_size: int | Sequence[int],
    inplace: bool = False,
    eps: float = 1e-6,
    training: bool = True,
    *,
    normalize: Normalization = "batch",
    share_channels: bool = False,
    gamma: Gamma = "paper",
    gamma_scale: float = 1.0,
    with_noise: bool = False,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    """Drops ``block_size`` elements in a row of ``[N, C, L]``; see :func:`drop_block2d`."""
    if has_torch_function_unary(input):
        return handle_torch_function(
            drop_block1d,
            (input,),
            input,
            p,
            block_size,
            inplace,
            eps,
            training,
            normalize=normalize,
            share_channels=share_channels,
            gamma=gamma,
            gamma_scale=gamma_scale,
            with_noise=with_noise,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
        )
    options = Options(inplace, eps, normalize, share_channels, gamma, gamma_scale, with_noise)
    return _drop_block(1, input, p, block_size, options, training, generator, seed, rng_state)


def drop_block2d(
    input: Tensor,
    p: float,
    block_size: int | Sequence[int],
    inplace: bool = False,
    eps: float = 1e-6,
    training: bool = True,
    *,
    normalize: Normalization = "batch",
    share_channels: bool = False,
    gamma: Gamma = "paper",
    gamma_scale: float = 1.0,
    with_noise: bool = False,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    r"""Zeroes square regions of every channel of ``[N, C, H, W]`` and scales up what is left.

    Equivalent to ``torchvision.ops.drop_block2d``, whose arguments, defaults and distribution it
    has. What differs: block sizes may be even; a block that is larger than the map is cut to it
    along each dimension by itself (torchvision cuts all its sides to the smallest size; a pair as
    ``block_size`` gives that); kept elements are counted in integers, whatever the dtype; dropped
    elements become 0 even where the input is infinite or NaN.

    What is dropped: a block of ``bh x bw`` can begin at (H - bh + 1) (W - bw + 1) places of a map.
    Each place is a seed, dropped with probability gamma on its own; in the order of (sample,
    channel, row, column) they are the columns of a one-row mask of stream 0 with 32 digits. A
    dropped seed drops the block that begins there, and what no dropped block covers is kept. With
    ``share_channels`` there are the seeds of one channel only.

    Source: Ghiasi, Lin and Le, "DropBlock: A regularization method for convolutional networks",
    NeurIPS 2018.

    Args:
        input: ``[N, C, H, W]``, any strides and memory format; float32, bfloat16, float16 or
            float64.
        p: rate of elements to drop, in [0, 1].
        block_size: side of the regions, or one for each dimension.
        inplace: write the result into ``input``.
        eps: added to the number of kept elements before dividing by it.
        training: if False, returns ``input``.
        normalize: kept elements are multiplied by (number of elements) / (number kept + eps),
            counted over the whole ``"batch"`` or over each ``"sample"``; ``"none"`` leaves them as
            they are.
        share_channels: all channels of a sample get the same regions, as in timm's.
        gamma: ``"paper"``: gamma is the paper's p H W / (bh bw (H - bh + 1) (W - bw + 1)), as
            torchvision's, which makes the realised rate lower than p, since regions overlap.
            ``"exact"``: gamma is such that the expected rate is p; torch.compile then compiles
            for each size by itself.
        gamma_scale: gamma is multiplied by it, and limited to 1; timm's.
        with_noise: dropped elements become normal noise instead of 0, and kept elements stay as
            they are, whatever ``normalize`` says; as in timm's. The noise is
            :func:`fused_dropout.normal_noise` of the same random state and the input's shape, with
            one channel only where channels are shared.
        generator: draws the random state; default: torch's generator of the input's device.
        seed: makes the call a pure function: the mask of seed ``seed`` and offset 0.
        rng_state: int64[2] tensor (seed, offset), likewise.

    Returns:
        The shape and memory format of ``input``, differentiable (any number of times). Backward
        reads the mask from packed bits, 1/32 of a float32 input's memory.

    Raises:
        ValueError: p, block_size, eps, normalize, gamma or gamma_scale out of range; another number
            of dimensions; more than one of generator, seed and rng_state.
        RuntimeError: a dtype that is not floating point; no kernels for the device.
        TypeError: an argument of the wrong type.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(
            drop_block2d,
            (input,),
            input,
            p,
            block_size,
            inplace,
            eps,
            training,
            normalize=normalize,
            share_channels=share_channels,
            gamma=gamma,
            gamma_scale=gamma_scale,
            with_noise=with_noise,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
        )
    options = Options(inplace, eps, normalize, share_channels, gamma, gamma_scale, with_noise)
    return _drop_block(2, input, p, block_size, options, training, generator, seed, rng_state)


def drop_block3d(
    input: Tensor,
    p: float,
    block_size: int | Sequence[int],
    inplace: bool = False,
    eps: float = 1e-6,
    training: bool = True,
    *,
    normalize: Normalization = "batch",
    share_channels: bool = False,
    gamma: Gamma = "paper",
    gamma_scale: float = 1.0,
    with_noise: bool = False,
    generator: torch.Generator | None = None,
    seed: int | None = None,
    rng_state: Tensor | None = None,
) -> Tensor:
    """Drops cubes of every channel of ``[N, C, D, H, W]``; see :func:`drop_block2d`."""
    if has_torch_function_unary(input):
        return handle_torch_function(
            drop_block3d,
            (input,),
            input,
            p,
            block_size,
            inplace,
            eps,
            training,
            normalize=normalize,
            share_channels=share_channels,
            gamma=gamma,
            gamma_scale=gamma_scale,
            with_noise=with_noise,
            generator=generator,
            seed=seed,
            rng_state=rng_state,
        )
    options = Options(inplace, eps, normalize, share_channels, gamma, gamma_scale, with_noise)
    return _drop_block(3, input, p, block_size, options, training, generator, seed, rng_state)


class Options(NamedTuple):
    """What the three functions and their modules have in common."""

    inplace: bool
    eps: float
    normalize: Normalization
    share_channels: bool
    gamma: Gamma
    gamma_scale: float
    with_noise: bool

    def check(self) -> None:
        """Raises a ValueError or TypeError for an option out of range."""
        checks.check_bool(self.inplace, "inplace")
        checks.check_number(self.eps, "eps", at_least=0.0)
        checks.check_bool(self.share_channels, "share_channels")
        checks.check_choice(self.normalize, "normalize", NORMALIZATIONS)
        checks.check_choice(self.gamma, "gamma", GAMMAS)
        checks.check_number(self.gamma_scale, "gamma_scale", at_least=0.0)
        checks.check_bool(self.with_noise, "with_noise")


def check_block_size(block_size: Any, dims: int) -> tuple[int, ...]:
    """``block_size``, an int or one for each of ``dims`` dimensions, as a tuple of ints >= 1."""
    if isinstance(block_size, Sequence) and not isinstance(block_size, str):
        sides = tuple(checks.as_int(side, "block_size's elements") for side in block_size)
        if len(sides) != dims:
            raise ValueError(f"block_size must be an int or {dims} of them, got {block_size}")
    else:
        sides = (checks.as_int(block_size, "block_size"),) * dims
    if min(sides) < 1:
        raise ValueError(f"block_size must be at least 1, got {block_size}")
    return sides


def _drop_block(
    dims: int,
    input: Tensor,
    p: float,
    block_size: int | Sequence[int],
    options: Options,
    training: bool,
    generator: torch.Generator | None,
    seed: int | None,
    rng_state: Tensor | None,
) -> Tensor:
    p = checks.check_probability(p)
    options.check()
    sides = check_block_size(block_size, dims)
    check_single_source(generator, seed, rng_state)
    checks.check_dense(input, "input")
    if input.dim() != dims + 2:
        raise ValueError(f"input should be {dims + 2} dimensional. Got {input.dim()} dimensions.")
    if not training or p == 0.0 or input.numel() == 0:
        return input
    checks.check_float_tensor(input, "input")
    extension.require_kernels(input)
    mask = _draw_mask(input, p, sides, options, generator, seed, rng_state)
    op = DropBlockInPlace if options.inplace else DropBlock
    output: Tensor = op.run((input, mask.bits, mask.scale), (options.share_channels,))
    return _add_noise(output, mask, options.share_channels) if options.with_noise else output


class _Mask(NamedTuple):
    """The packed mask, the factors of what it keeps, and the random state of both."""

    bits: Tensor
    scale: Tensor
    rng_state: Tensor


def _seed_rate(p: float, sizes: Sequence[int], block: Sequence[int], options: Options) -> float:
    if options.gamma == "paper":
        rate = paper_gamma(p, sizes, block)
    else:
        # torch.compile knows the numbers of a range, also where it leaves the size itself open.
        numbers = [len(range(size)) for size in (*sizes, *block)]
        rate = exact_gamma(p, tuple(numbers[: len(sizes)]), tuple(numbers[len(sizes) :]))
    scale = options.gamma_scale
    return rate if scale == 1.0 else min(1.0, rate * float(scale))


def _draw_mask(
    input: Tensor,
    p: float,
    sides: tuple[int, ...],
    options: Options,
    generator: torch.Generator | None,
    seed: int | None,
    rng_state: Tensor | None,
) -> _Mask:
    sizes = tuple(input.shape[2:])
    block = tuple(min(side, size) for side, size in zip(sides, sizes, strict=True))
    gamma = _seed_rate(p, sizes, block, options)
    normalize = "none" if options.with_noise else options.normalize
    scales = {"none": 0, "batch": 1, "sample": input.shape[0]}[normalize]
    settings = (block, gamma, options.share_channels, scales, float(options.eps))
    nothing_is_drawn = gamma == 1.0 and not options.with_noise
    if nothing_is_drawn:  # so the generator stays where it is
        state = unused_rng_state()
    else:
        state = resolve_rng_state(input, generator, seed, rng_state)
    bits, scale = extension.operators().drop_block_mask(input.detach(), state, *settings)
    return _Mask(bits, scale, state)


def _add_noise(output: Tensor, mask: _Mask, share_channels: bool) -> Tensor:
    """Writes noise over what the mask has dropped."""
    shape = (output.shape[0], 1 if share_channels else output.shape[1], *output.shape[2:])
    drawn_in = torch.float64 if output.dtype == torch.float64 else torch.float32
    operators = extension.operators()
    # The noise is drawn where the random state is, which may be the CPU.
    noise = operators.normal_noise(mask.rng_state.to(output.device), shape, drawn_in)
    ones = output.new_ones(shape)
    kept = operators.drop_block(ones, mask.bits, mask.scale, share_channels)
    return output.add_(torch.where(kept == 0, noise.to(output.dtype), 0))
