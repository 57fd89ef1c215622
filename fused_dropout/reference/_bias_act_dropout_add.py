"""The transformer epilogue written out: what the kernels of bias_act_dropout_add must compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_dropout.reference._masks import Convention, keep_rate, mask

Activation = Literal["none", "relu", "gelu", "gelu_tanh", "silu"]
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}


def bias_act_dropout_add(
    input: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    p: float = 0.1,
    activation: Activation = "none",
    training: bool = True,
    *,
    seed: int = 0,
    offset: int = 0,
    convention: Convention = "inverted",
) -> Tensor:
    """``residual + dropout(activation(input + bias))``, step by step.

    Args:
        input: ``[..., features]``.
        bias: ``[features]`` or None.
        residual: the shape of ``input``, or None.
        p: drop probability in [0, 1].
        activation: a key of ``ACTIVATIONS``.
        training: if False, nothing is dropped.
        seed, offset: the random state, ints modulo 2^64.
        convention: ``"inverted"`` divides by the keep rate q in training; ``"paper"`` multiplies by
            q in evaluation instead.

    Returns:
        A tensor of the shape of ``input``; gradients are plain autograd's.
    """
    q = keep_rate(p)
    output = ACTIVATIONS[activation](input if bias is None else input + bias)
    if training:
        kept = mask(input.numel(), p, seed=seed, offset=offset, device=input.device)
        # where, not a product: a dropped infinity must leave 0, not NaN.
        output = torch.where(kept.view(input.shape), output, torch.zeros_like(output))
    if training and convention == "inverted" and q > 0:
        output = output / q
    elif not training and convention == "paper":
        output = output * q
    return output if residual is None else residual + output
