"""Networks that several experiments train."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from fused_dropout._tools.datasets import CLASSES

Noise = Callable[[], nn.Module]  # makes the layer that follows an activation


def mlp(
    features: int,
    hidden: Sequence[int],
    noises: Sequence[Noise | None] = (),
    *,
    input_noise: Noise | None = None,
    linear: Callable[[int, int], nn.Module] = nn.Linear,
) -> nn.Sequential:
    """Linear and ReLU for each hidden width, then a Linear to the classes.

    `noises` follow the activations, layer by layer; None or a missing one: nothing follows.
    `linear` makes the hidden layers.
    """
    layers: list[nn.Module] = [] if input_noise is None else [input_noise()]
    width = features
    for index, units in enumerate(hidden):
        layers += [linear(width, units), nn.ReLU()]
        noise = noises[index] if index < len(noises) else None
        if noise is not None:
            layers.append(noise())
        width = units
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


def autoencoder(features: int, hidden: int, noise: Noise | None = None) -> nn.Sequential:
    """Linear and ReLU to `hidden` units, then a Linear back; `noise` follows the ReLU."""
    layers: list[nn.Module] = [nn.Linear(features, hidden), nn.ReLU()]
    if noise is not None:
        layers.append(noise())
    return nn.Sequential(*layers, nn.Linear(hidden, features))


def initialise_normal(network: nn.Module, deviation: float) -> nn.Module:
    """Normal weights and zero biases, drawn from torch's default generator."""
    with torch.no_grad():
        for module in network.modules():
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            if isinstance(weight, nn.Parameter) and weight.dim() > 1:
                weight.normal_(0.0, deviation)
                if isinstance(bias, nn.Parameter):
                    bias.zero_()
    return network
