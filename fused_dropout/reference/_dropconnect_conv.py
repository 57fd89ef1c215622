"""DropConnect's convolutions with their masks written out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fused_dropout.reference._masks import Convention, keep_rate
from fused_dropout.reference._masks import mask as keep_mask

_CONVOLUTIONS = (
    torch.nn.functional.conv1d,
    torch.nn.functional.conv2d,
    torch.nn.functional.conv3d,
)


def dropconnect_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | Literal["valid", "same"] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    p: float = 0.5,
    training: bool = True,
    *,
    mask: Literal["example", "batch"] | int = "example",
    seed: int,
    offset: int = 0,
    convention: Convention = "inverted",
) -> Tensor:
    """A convolution of every example with a masked weight of its own, one after the other.

    Element i of the weight of output channel o, flattened over ``[in_channels / groups,
    *kernel_size]``, has element ``(k * out_channels + o, i)`` of stream 0 in mask k, and the
    channel's bias element ``(k, o)`` of stream 1: the masks of a dropconnect_linear with as many
    input features.

    Args:
        input: ``[N, in_channels, *size]``, or without N for one example, in 1 to 3 dimensions.
        weight: ``[out_channels, in_channels / groups, *kernel_size]``.
        bias: ``[out_channels]`` or None.
        stride, padding, dilation, groups: those of the dense convolution.
        p: drop probability in [0, 1].
        training: if False, the plain convolution (times q with ``convention="paper"``).
        mask: the examples that share a mask: ``"example"`` (none), ``"batch"`` (all), or that many
            consecutive examples.
        seed, offset: the random state, ints modulo 2^64.
        convention: ``"inverted"`` divides by the keep rate q in training; ``"paper"`` multiplies by
            q in evaluation instead.

    Returns:
        A tensor ``[N, out_channels, *out_size]``; gradients are plain autograd's.
    """
    convolution = _CONVOLUTIONS[weight.dim() - 3]
    q = keep_rate(p)
    if not training:
        output = convolution(input, weight, bias, stride, padding, dilation, groups)
        return output * q if convention == "paper" else output
    if input.dim() < weight.dim():
        batch = dropconnect_conv(
            input[None], weight, bias, stride, padding, dilation, groups, p,
            mask=mask, seed=seed, offset=offset, convention=convention,
        )  # fmt: skip
        return batch[0]
    each = 1 if mask == "example" else max(1, len(input)) if mask == "batch" else mask
    n_masks = max(1, -(-len(input) // each))

    def draw(shape: tuple[int, ...], stream: int) -> Tensor:
        return keep_mask(shape, p, seed=seed, offset=offset, stream=stream, device=input.device)

    kept = draw((n_masks, len(weight), weight[0].numel()), stream=0).view(-1, *weight.shape)
    kept_bias = draw((n_masks, len(weight)), stream=1)
    outputs = []
    for k in range(n_masks):
        own = torch.where(kept[k], weight, torch.zeros_like(weight))
        own_bias = None if bias is None else torch.where(kept_bias[k], bias, torch.zeros_like(bias))
        examples = input[k * each : (k + 1) * each]
        outputs.append(convolution(examples, own, own_bias, stride, padding, dilation, groups))
    output = torch.cat(outputs)
    if convention == "inverted":
        output = output / q if q > 0 else output * 0
    return output
