"""The peers: DropConnect the way people write it in plain PyTorch.

Nothing here uses the fused kernels. The benchmark and the demo measure these against
`fused_dropout.functional.dropconnect_linear`, which computes the same thing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fused_dropout._core.checks import check_probability


def naive_dropconnect_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    p: float = 0.5,
    training: bool = True,
) -> Tensor:
    """Per-example DropConnect by materialised masks, with inverted scaling.

    y[n, o] = (sum_i M[n, o, i] W[o, i] x[n, i] + m[n, o] b[o]) / (1 - p), every M and m drawn
    independently (Wan et al. 2013, "Regularization of Neural Networks using DropConnect",
    section 3; with 1 / (1 - p) in training instead of (1 - p) at inference).

    Time and memory grow with N * O * I: the mask alone is 4 N O I bytes in float32, and autograd
    keeps the masked weights as well.

    Args:
        input: [N, I], floating point.
        weight: [O, I], same dtype and device as `input`.
        bias: [O] or None.
        p: drop probability, 0 <= p <= 1.
        training: False gives `F.linear`.

    Returns:
        [N, O], the dtype of `input`.

    Raises:
        ValueError: `p` outside [0, 1] or NaN; `input` not 2-D.
        TypeError: `p` is no number.
    """
    p = check_probability(p)
    if input.dim() != 2:
        raise ValueError(f"input must be 2-D [N, in_features], got shape {tuple(input.shape)}")
    if not training or p == 0:
        return F.linear(input, weight, bias)
    rows, (out_features, in_features) = input.shape[0], weight.shape
    weight_mask = torch.bernoulli(weight.new_full((rows, out_features, in_features), 1.0 - p))
    bias_mask = None
    if bias is not None:
        bias_mask = torch.bernoulli(bias.new_full((rows, out_features), 1.0 - p))
    return masked_linear(input, weight, bias, weight_mask, bias_mask, 1.0 - p)


def naive_shared_dropconnect_linear(
    input: Tensor, weight: Tensor, bias: Tensor, p: float, masks: int
) -> Tensor:
    """DropConnect whose rows share masks, by masked copies of the weight.

    Args:
        input: [N, I]; each of `masks` equal runs of rows has a mask of its own.
        weight: [O, I].
        bias: [O].
        p: drop probability.
        masks: divides N; one copy of the weight for each.

    Returns:
        [N, O], the dtype of `input`.
    """
    if masks == 1:
        return F.linear(input, F.dropout(weight, p), F.dropout(bias, p))
    weights = F.dropout(weight.expand(masks, *weight.shape), p)
    biases = F.dropout(bias.expand(masks, *bias.shape), p)
    rows = input.view(masks, -1, input.shape[-1])
    return torch.baddbmm(biases[:, None], rows, weights.mT).view(input.shape[0], -1)


def naive_dropconnect_conv2d(
    input: Tensor, weight: Tensor, bias: Tensor, p: float, shared: bool = False
) -> Tensor:
    """A convolution whose weights are dropped per image, by a loop over the images.

    Args:
        input: [N, C, H, W].
        weight: [O, C / groups, kH, kW].
        bias: [O].
        p: drop probability.
        shared: all images have one mask.

    Returns:
        [N, O, H, W], the dtype of `input`.
    """

    groups = input.shape[1] // weight.shape[1]

    def convolve(images: Tensor) -> Tensor:
        own_weight, own_bias = F.dropout(weight, p), F.dropout(bias, p)
        return F.conv2d(images, own_weight, own_bias, padding="same", groups=groups)

    if shared:
        return convolve(input)
    return torch.cat([convolve(image) for image in input.split(1)])


def masked_linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    weight_mask: Tensor,
    bias_mask: Tensor | None,
    keep: float,
) -> Tensor:
    """The arithmetic of the naive layer for given masks (1 or True = kept).

    input [N, I], weight [O, I], bias [O] or None, weight_mask [N, O, I], bias_mask [N, O] or None;
    returns [N, O], divided by the keep rate `keep` (zeros where nothing is kept).
    """
    output = torch.bmm(weight * weight_mask, input.unsqueeze(2)).squeeze(2)
    if bias is not None and bias_mask is not None:
        output = output + bias * bias_mask
    return output / keep if keep > 0 else output


class NaiveDropConnectLinear(torch.nn.Linear):
    """`torch.nn.Linear` whose weights and biases are dropped per example, written naively.

    Parameters, initialisation and state_dict are those of `torch.nn.Linear`, so checkpoints move
    freely between the two and `fused_dropout.nn.DropConnectLinear`. Input [N, in_features].

    Raises:
        ValueError, TypeError: `p` outside [0, 1], NaN or no number.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        p: float = 0.5,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        p = check_probability(p)
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.p = p

    def forward(self, input: Tensor) -> Tensor:
        return naive_dropconnect_linear(input, self.weight, self.bias, self.p, self.training)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}"
