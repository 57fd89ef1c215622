"""A small model of the family's layers trains. `make wheel-check` runs this too."""

from __future__ import annotations

import torch
from torch import nn

import fused_dropout


def test_a_step_of_training_lowers_the_loss(place: torch.device) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        fused_dropout.nn.DropConnectLinear(20, 64, p=0.5),
        nn.GELU(),
        fused_dropout.nn.Dropout(0.25),
        nn.Linear(64, 64),
        fused_dropout.nn.GaussianDropout(0.1),
        nn.Linear(64, 3),
    )
    x = torch.randn(256, 20)
    labels = x[:, :3].argmax(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def loss() -> torch.Tensor:
        return nn.functional.cross_entropy(model(x), labels)

    def loss_without_masks() -> float:
        model.eval()
        value = loss().item()
        model.train()
        return value

    before = loss_without_masks()
    loss().backward()
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        assert gradient is not None and gradient.isfinite().all() and gradient.any(), name
    optimizer.step()
    assert loss_without_masks() < before
