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
    """Zeroes runs of elements in every channel and scales up what is left.

    DropBlock in one dimension, with the arguments of :func:`torchvision.ops.drop_block2d`. Block
    sizes may be even, and a block that is longer than the channel is cut to it. Kept elements are
    counted in integers, whatever the dtype. Dropped elements become 0 even where the input is
    infinite or NaN.

    What is dropped: a block of ``b`` elements can begin at ``L - b + 1`` places of a channel. Each
    place is a seed, dropped with probability gamma on its own; in the order of (sample, channel,
    position) the seeds are the columns of a one-row mask of stream 0 with 32 digits. A dropped seed
    drops the block that begins there, and what no dropped block covers is kept. With
    ``share_channels`` there are the seeds of one channel only.

    Source: Ghiasi, Lin and Le, "DropBlock: A regularization method for convolutional networks",
    NeurIPS 2018.

    Args:
        input: ``[N, C, L]``, any strides and memory format; float32, bfloat16, float16 or float64.
        p: rate of elements to drop, in [0, 1].
        block_size: length of the runs in elements, an int of at least 1 or a sequence of one.
        inplace: write the result into ``input``.
        eps: added to the number of kept elements before dividing by it; at least 0.
        training: if False, returns ``input``.
        normalize: kept elements are multiplied by (number of elements) / (number kept + eps),
            counted over the whole ``"batch"`` or over each ``"sample"``; ``"none"`` leaves them as
            they are.
        share_channels: all channels of a sample get the same regions, as in timm.
        gamma: ``"paper"``: gamma is ``p L / (b (L - b + 1))``, as in the paper; the rate of dropped
            elements is then lower than p, since blocks overlap. ``"exact"``: gamma is such that the
            expected rate is p; torch.compile then compiles for each size by itself.
        gamma_scale: gamma is multiplied by it, and limited to 1; at least 0; timm's argument.
        with_noise: dropped elements become normal noise instead of 0, and kept elements stay as
            they are, whatever ``normalize`` says; timm's argument. The noise is
            :func:`fused_dropout.normal_noise` of the same random state and the input's shape, with
            one channel only where channels are shared.
        generator: draws the random state; default: torch's generator of the input's device.
        seed: an int that makes the call a pure function of its arguments: it uses the mask of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.

    Returns:
        A tensor of the shape and memory format of ``input``, differentiable any number of times.
        Backward reads the mask from packed bits, 1/32 of a float32 input's memory.

    Raises:
        ValueError: p, block_size, eps, normalize, gamma or gamma_scale out of range; another number
            of dimensions; more than one of generator, seed and rng_state.
        RuntimeError: an integer dtype (NotImplementedError for complex numbers and 8-bit floats, as
            in torch); no kernels for the device; ``inplace`` on a leaf that requires grad, or on
            elements that share memory.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> F.drop_block1d(torch.ones(1, 1, 12), 0.4, 3, normalize="none", seed=0)
        tensor([[[1., 1., 0., 0., 0., 1., 1., 0., 0., 0., 1., 1.]]])
    """
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
    """Zeroes rectangles in every channel of an image and scales up what is left.

    Equivalent to ``torchvision.ops.drop_block2d``, whose arguments, defaults and distribution it
    has, with these differences. Block sizes may be even. A block that is larger than the map is cut
    to it along each dimension by itself (torchvision cuts all its sides to the smallest size; a
    pair as ``block_size`` gives that). Kept elements are counted in integers, whatever the dtype.
    Dropped elements become 0 even where the input is infinite or NaN.

    What is dropped: a block of ``bh x bw`` elements can begin at ``(H - bh + 1) (W - bw + 1)``
    places of a channel. Each place is a seed, dropped with probability gamma on its own; in the
    order of (sample, channel, row, column) the seeds are the columns of a one-row mask of stream 0
    with 32 digits. A dropped seed drops the block that begins there, and what no dropped block
    covers is kept. With ``share_channels`` there are the seeds of one channel only.

    Source: Ghiasi, Lin and Le, "DropBlock: A regularization method for convolutional networks",
    NeurIPS 2018.

    Args:
        input: ``[N, C, H, W]``, any strides and memory format; float32, bfloat16, float16 or
            float64.
        p: rate of elements to drop, in [0, 1].
        block_size: sides of the rectangles in elements, at least 1: an int, or (height, width).
        inplace: write the result into ``input``.
        eps: added to the number of kept elements before dividing by it; at least 0.
        training: if False, returns ``input``.
        normalize: kept elements are multiplied by (number of elements) / (number kept + eps),
            counted over the whole ``"batch"`` or over each ``"sample"``; ``"none"`` leaves them as
            they are.
        share_channels: all channels of a sample get the same regions, as in timm.
        gamma: ``"paper"``: gamma is ``p H W / (bh bw (H - bh + 1) (W - bw + 1))``, as in the paper
            and torchvision; the rate of dropped elements is then lower than p, since blocks
            overlap. ``"exact"``: gamma is such that the expected rate is p; torch.compile then
            compiles for each size by itself.
        gamma_scale: gamma is multiplied by it, and limited to 1; at least 0; timm's argument.
        with_noise: dropped elements become normal noise instead of 0, and kept elements stay as
            they are, whatever ``normalize`` says; timm's argument. The noise is
            :func:`fused_dropout.normal_noise` of the same random state and the input's shape, with
            one channel only where channels are shared.
        generator: draws the random state; default: torch's generator of the input's device.
        seed: an int that makes the call a pure function of its arguments: it uses the mask of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.

    Returns:
        A tensor of the shape and memory format of ``input``, differentiable any number of times.
        Backward reads the mask from packed bits, 1/32 of a float32 input's memory.

    Raises:
        ValueError: p, block_size, eps, normalize, gamma or gamma_scale out of range; another number
            of dimensions; more than one of generator, seed and rng_state.
        RuntimeError: an integer dtype (NotImplementedError for complex numbers and 8-bit floats, as
            in torch); no kernels for the device; ``inplace`` on a leaf that requires grad, or on
            elements that share memory.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> F.drop_block2d(torch.ones(1, 1, 4, 6), 0.3, 2, normalize="none", seed=0)
        tensor([[[[1., 1., 1., 1., 1., 1.],
                  [1., 1., 0., 0., 1., 1.],
                  [0., 0., 0., 0., 1., 1.],
                  [0., 0., 1., 1., 1., 1.]]]])
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
    """Zeroes boxes in every channel of a volume and scales up what is left.

    Equivalent to ``torchvision.ops.drop_block3d``, whose arguments, defaults and distribution it
    has, with these differences. Block sizes may be even. A block that is larger than the map is cut
    to it along each dimension by itself (torchvision cuts all its sides to the smallest size; three
    sizes as ``block_size`` gives that). Kept elements are counted in integers, whatever the dtype.
    Dropped elements become 0 even where the input is infinite or NaN.

    What is dropped: a block of ``bd x bh x bw`` elements can begin at
    ``(D - bd + 1) (H - bh + 1) (W - bw + 1)`` places of a channel. Each place is a seed, dropped
    with probability gamma on its own; in the order of (sample, channel, depth, row, column) the
    seeds are the columns of a one-row mask of stream 0 with 32 digits. A dropped seed drops the
    block that begins there, and what no dropped block covers is kept. With ``share_channels`` there
    are the seeds of one channel only.

    Source: Ghiasi, Lin and Le, "DropBlock: A regularization method for convolutional networks",
    NeurIPS 2018.

    Args:
        input: ``[N, C, D, H, W]``, any strides and memory format; float32, bfloat16, float16 or
            float64.
        p: rate of elements to drop, in [0, 1].
        block_size: sides of the boxes in elements, at least 1: an int, or (depth, height, width).
        inplace: write the result into ``input``.
        eps: added to the number of kept elements before dividing by it; at least 0.
        training: if False, returns ``input``.
        normalize: kept elements are multiplied by (number of elements) / (number kept + eps),
            counted over the whole ``"batch"`` or over each ``"sample"``; ``"none"`` leaves them as
            they are.
        share_channels: all channels of a sample get the same regions, as in timm.
        gamma: ``"paper"``: gamma is
            ``p D H W / (bd bh bw (D - bd + 1) (H - bh + 1) (W - bw + 1))``, as in the paper and
            torchvision; the rate of dropped elements is then lower than p, since blocks overlap.
            ``"exact"``: gamma is such that the expected rate is p; torch.compile then compiles for
            each size by itself.
        gamma_scale: gamma is multiplied by it, and limited to 1; at least 0; timm's argument.
        with_noise: dropped elements become normal noise instead of 0, and kept elements stay as
            they are, whatever ``normalize`` says; timm's argument. The noise is
            :func:`fused_dropout.normal_noise` of the same random state and the input's shape, with
            one channel only where channels are shared.
        generator: draws the random state; default: torch's generator of the input's device.
        seed: an int that makes the call a pure function of its arguments: it uses the mask of seed
            ``seed`` and offset 0.
        rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
            :func:`fused_dropout.make_rng_state`.

    Returns:
        A tensor of the shape and memory format of ``input``, differentiable any number of times.
        Backward reads the mask from packed bits, 1/32 of a float32 input's memory.

    Raises:
        ValueError: p, block_size, eps, normalize, gamma or gamma_scale out of range; another number
            of dimensions; more than one of generator, seed and rng_state.
        RuntimeError: an integer dtype (NotImplementedError for complex numbers and 8-bit floats, as
            in torch); no kernels for the device; ``inplace`` on a leaf that requires grad, or on
            elements that share memory.
        TypeError: an argument of the wrong type.

    Example:
        >>> from fused_dropout import functional as F
        >>> F.drop_block3d(torch.ones(1, 1, 2, 4, 6), 0.3, 2, normalize="none", seed=0)[0, 0, 0]
        tensor([[1., 1., 1., 1., 1., 1.],
                [1., 1., 0., 0., 1., 1.],
                [0., 0., 0., 0., 1., 1.],
                [0., 0., 1., 1., 1., 1.]])
    """
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
