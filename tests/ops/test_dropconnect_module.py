"""DropConnectLinear: a drop-in for torch.nn.Linear."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from fused_dropout.nn import DropConnectLinear


def test_parameters_initialisation_and_state_dict_are_linear_s(place: torch.device) -> None:
    torch.manual_seed(3)
    linear = torch.nn.Linear(30, 20)
    torch.manual_seed(3)
    layer = DropConnectLinear(30, 20)
    assert list(layer.state_dict()) == list(linear.state_dict())
    assert layer.weight.device == place
    for a, b in zip(layer.parameters(), linear.parameters(), strict=True):
        assert torch.equal(a, b)
    layer.load_state_dict(torch.nn.Linear(30, 20).state_dict())
    assert isinstance(layer, torch.nn.Linear)
    assert DropConnectLinear(30, 20, bias=False).bias is None
    assert DropConnectLinear(3, 2, dtype=torch.float64).weight.dtype == torch.float64
    assert DropConnectLinear(3, 2, device="meta").weight.is_meta


def test_repr() -> None:
    assert repr(DropConnectLinear(30, 20)) == (
        "DropConnectLinear(in_features=30, out_features=20, bias=True, p=0.5, mask='example')"
    )
    shown = repr(
        DropConnectLinear(3, 2, False, 0.1, mask=4, convention="paper", mask_storage="packed")
    )
    assert shown.endswith("p=0.1, mask=4, convention='paper', mask_storage='packed')")


def test_training_and_evaluation(place: torch.device) -> None:
    layer = DropConnectLinear(30, 20)
    input = torch.randn(4, 30)
    layer.eval()
    expected = torch.nn.functional.linear(input, layer.weight, layer.bias)
    assert torch.equal(layer(input), expected)
    layer.train()
    assert not torch.equal(layer(input), layer(input)), "every call draws its own masks"


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_work_alike(clone, place: torch.device) -> None:
    layer = DropConnectLinear(30, 20, p=0.1, mask="row", convention="paper")
    other = clone(layer)
    assert repr(other) == repr(layer)
    input = torch.randn(4, 30)
    torch.manual_seed(1)
    expected = layer(input)
    torch.manual_seed(1)
    assert torch.equal(other(input), expected)


def test_checkpointing_draws_the_same_masks_again(place: torch.device) -> None:
    layer = DropConnectLinear(30, 30)
    input = torch.randn(4, 30, requires_grad=True)
    torch.manual_seed(5)
    (plain,) = torch.autograd.grad(layer(layer(input)).sum(), input)
    torch.manual_seed(5)
    output = checkpoint(lambda x: layer(layer(x)), input, use_reentrant=False)
    (again,) = torch.autograd.grad(output.sum(), input)
    assert torch.equal(plain, again)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_dtype(dtype: torch.dtype, place: torch.device) -> None:
    layer = DropConnectLinear(30, 20)
    input = torch.randn(4, 30, requires_grad=True)
    with torch.autocast(place.type, dtype=dtype):
        output = layer(input)
    assert output.dtype == dtype
    output.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    assert input.grad.dtype == torch.float32


def test_trains(place: torch.device) -> None:
    """A layer that learns a linear map through its masks: the loss falls by far."""
    torch.manual_seed(0)
    target = torch.randn(5, 16)
    layer = DropConnectLinear(16, 5, p=0.25)
    optimizer = torch.optim.Adam(layer.parameters(), 0.05)
    losses = []
    for _ in range(200):
        input = torch.randn(64, 16)
        loss = (layer(input) - input @ target.t()).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    layer.eval()
    input = torch.randn(256, 16)
    # The shrinkage that DropConnect's expected loss asks for leaves about p^2 of the variance.
    error = (layer(input) - input @ target.t()).square().mean() / (input @ target.t()).var()
    assert losses[-1] < losses[0]
    assert error < 0.15
