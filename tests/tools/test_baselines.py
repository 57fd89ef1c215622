"""The naive DropConnect layer that ours is measured against is itself right."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fused_dropout._tools.baselines import (
    NaiveDropConnectLinear,
    masked_linear,
    naive_dropconnect_linear,
    naive_shared_dropconnect_linear,
)
from fused_dropout.functional import dropconnect_linear


def test_masked_linear_drops_weights_and_biases_per_example(place: torch.device) -> None:
    generator = torch.Generator(place).manual_seed(0)
    input, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((3, 5), (4, 5), (4,))
    )
    weight_mask = torch.rand(3, 4, 5, generator=generator) < 0.7
    bias_mask = torch.rand(3, 4, generator=generator) < 0.7

    output = masked_linear(input, weight, bias, weight_mask, bias_mask, 0.7)

    for n in range(3):
        expected = F.linear(input[n], weight * weight_mask[n], bias * bias_mask[n]) / 0.7
        torch.testing.assert_close(output[n], expected)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_mean_and_variance_over_masks(p: float, place: torch.device) -> None:
    """Over many examples that are all alike: E y = W x + b, Var y = p/(1-p) [W^2 x^2 + b^2]."""
    torch.manual_seed(0)
    examples, in_features, out_features = 4000, 24, 8
    x, weight = torch.randn(in_features), torch.randn(out_features, in_features)
    bias = 3 * torch.randn(out_features)

    output = naive_dropconnect_linear(x.expand(examples, -1), weight, bias, p)

    variance = p / (1 - p) * (weight.square() @ x.square() + bias.square())
    error = (output.mean(0) - F.linear(x, weight, bias)) / (variance / examples).sqrt()
    assert error.abs().max() < 5
    torch.testing.assert_close(output.var(0), variance, rtol=0.15, atol=0)


def test_evaluation_and_p_zero_are_the_linear_layer(place: torch.device) -> None:
    layer = NaiveDropConnectLinear(6, 3, p=0.5)
    input = torch.randn(4, 6)
    expected = F.linear(input, layer.weight, layer.bias)
    assert not torch.equal(layer(input), expected)
    assert torch.equal(layer.eval()(input), expected)
    assert torch.equal(naive_dropconnect_linear(input, layer.weight, layer.bias, 0.0), expected)


def test_p_one_gives_zeros_and_finite_gradients(place: torch.device) -> None:
    layer = NaiveDropConnectLinear(6, 3, p=1.0)
    output = layer(torch.randn(4, 6))
    output.sum().backward()
    assert torch.equal(output, torch.zeros(4, 3))
    assert layer.weight.grad is not None and not layer.weight.grad.any()


def test_gradients_flow_to_all_operands(place: torch.device) -> None:
    layer = NaiveDropConnectLinear(6, 3, p=0.5).double()
    input = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)

    def fixed_masks(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return naive_dropconnect_linear(x, weight, bias, p=0.5)

    assert torch.autograd.gradcheck(fixed_masks, (input, layer.weight, layer.bias))


def test_without_bias_and_with_the_parameters_of_linear(place: torch.device) -> None:
    layer = NaiveDropConnectLinear(6, 3, bias=False, p=0.25)
    assert layer.bias is None and layer(torch.randn(2, 6)).shape == (2, 3)
    torch.manual_seed(0)
    linear = torch.nn.Linear(6, 3)
    torch.manual_seed(0)
    naive = NaiveDropConnectLinear(6, 3)
    assert torch.equal(naive.weight, linear.weight)
    linear.load_state_dict(naive.state_dict())
    assert "p=0.25" in repr(layer)


@pytest.mark.parametrize("p", [-0.1, 1.5, float("nan")])
def test_bad_p_is_rejected(p: float) -> None:
    with pytest.raises(ValueError, match="p"):
        NaiveDropConnectLinear(2, 2, p=p)
    with pytest.raises(ValueError, match="p"):
        naive_dropconnect_linear(torch.zeros(1, 2), torch.zeros(2, 2), p=p)


def test_input_must_be_a_matrix() -> None:
    with pytest.raises(ValueError, match=r"2-D .* \(1, 2, 3\)"):
        naive_dropconnect_linear(torch.zeros(1, 2, 3), torch.zeros(4, 3))


@pytest.mark.parametrize("masks", [1, 4])
def test_rows_share_masks(masks: int) -> None:
    """Dense where nothing is dropped; else a mask for each group of rows, of the same mean."""
    torch.manual_seed(0)
    rows, weight, bias = torch.randn(8, 5), torch.randn(3, 5), torch.randn(3)
    whole = naive_shared_dropconnect_linear(rows, weight, bias, 0.0, masks)
    torch.testing.assert_close(whole, F.linear(rows, weight, bias))
    alike, ones, zeros = torch.ones(8, 2000), torch.ones(30, 2000), torch.zeros(30)
    naive = naive_shared_dropconnect_linear(alike, ones, zeros, 0.5, masks)
    ours = dropconnect_linear(alike, ones, None, 0.5, mask=8 // masks)
    for output in (naive, ours):
        groups = output.view(masks, -1, 30)
        assert torch.equal(groups, groups[:, :1].expand_as(groups))
        assert len(groups[:, 0].unique(dim=0)) == masks
        torch.testing.assert_close(output.mean(), torch.tensor(2000.0), rtol=0.05, atol=0)
    of_biases = naive_shared_dropconnect_linear(
        torch.zeros(8, 5), torch.zeros(99, 5), torch.ones(99), 0.5, masks
    )
    assert of_biases.unique().tolist() == [0, 2]
    assert len(of_biases.unique(dim=0)) == masks
