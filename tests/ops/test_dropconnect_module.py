"""DropConnectLinear: a drop-in for torch.nn.Linear."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from fused_dropout import functional, make_rng_state
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
    shown = repr(DropConnectLinear(3, 2, mask_bias=False, inference="relu_exact"))
    assert shown.endswith("mask_bias=False, inference='relu_exact', activation='relu')")
    layer = DropConnectLinear(3, 2, inference="gaussian", activation=torch.tanh, samples=5, seed=4)
    shown = "inference='gaussian', activation='tanh', samples=5, seed=4)"
    assert repr(layer).endswith(shown)
    layer = DropConnectLinear(3, 2, activation=torch.nn.PReLU())
    assert "(activation): PReLU(num_parameters=1)" in repr(layer)


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


INFERENCES = (
    {"inference": "relu_exact"},
    {"inference": "gaussian", "activation": "tanh", "samples": 40, "seed": 3},
    {"inference": "gaussian", "activation": torch.nn.PReLU(), "samples": 40, "seed": 3},
    {"inference": "mean", "activation": torch.sigmoid, "mask_bias": False, "convention": "paper"},
)


@pytest.mark.parametrize("options", INFERENCES, ids=lambda options: options["inference"])
def test_inference(options: dict[str, object], place: torch.device) -> None:
    """Evaluation is the function's; training applies the activation to the masked layer."""
    layer = DropConnectLinear(30, 20, p=0.3, mask="batch", **options)
    input = torch.randn(4, 30)
    activation = options.get("activation", "relu")
    known = {key: options[key] for key in ("mask_bias", "convention") if key in options}
    act = torch.nn.ReLU() if activation == "relu" else activation
    act = torch.tanh if act == "tanh" else act
    torch.manual_seed(2)
    trained = layer(input)
    torch.manual_seed(2)
    masked = functional.dropconnect_linear(
        input, layer.weight, layer.bias, 0.3, mask="batch", **known
    )
    assert torch.equal(trained, act(masked))
    layer.eval()
    if options["inference"] == "mean":
        q = 45875 / 2**16
        expected = torch.sigmoid(q * (input @ layer.weight.T) + layer.bias)
        torch.testing.assert_close(layer(input), expected)
        return
    samples = options.get("samples")
    seed = None if samples is None else 3
    expected = functional.dropconnect_gaussian(
        input, layer.weight, layer.bias, 0.3, activation, samples, seed=seed
    )
    assert torch.equal(layer(input), expected)
    assert torch.equal(layer(input), layer(input))
    torch.testing.assert_close(layer(input[None]), expected[None])


def test_inference_draws_from_torch_s_generator_or_the_layer_s(place: torch.device) -> None:
    options = {"inference": "gaussian", "activation": "tanh", "samples": 9}
    input = torch.randn(4, 30)
    layer = DropConnectLinear(30, 20, **options).eval()
    assert not torch.equal(layer(input), layer(input))
    torch.manual_seed(1)
    first = layer(input)
    torch.manual_seed(1)
    assert torch.equal(layer(input), first)
    draw = torch.Generator(place).manual_seed(5)
    layer = DropConnectLinear(30, 20, **options, generator=draw).eval()
    first = layer(input)
    draw.manual_seed(5)
    assert torch.equal(layer(input), first)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("options", INFERENCES, ids=lambda options: options["inference"])
def test_copies_infer_alike(options: dict[str, object], clone) -> None:
    layer = DropConnectLinear(30, 20, **options).eval()
    other = clone(layer)
    input = torch.randn(4, 30)
    assert repr(other) == repr(layer)
    assert torch.equal(other(input), layer(input))


def test_layers_pickled_before_there_was_inference_still_work() -> None:
    layer = DropConnectLinear(30, 20, p=0.1).eval()
    state = dict(vars(layer))
    for name in ("mask_bias", "inference", "activation", "samples", "generator", "seed"):
        del state[name]
    old = DropConnectLinear.__new__(DropConnectLinear)
    old.__setstate__(state)
    input = torch.randn(4, 30)
    assert torch.equal(old(input), layer(input))
    assert repr(old) == repr(layer)
    with_module = DropConnectLinear(3, 2, activation=torch.nn.ReLU())
    assert isinstance(copy.deepcopy(with_module).activation, torch.nn.ReLU)


@pytest.mark.parametrize("mask_bias", [True, False])
@pytest.mark.parametrize("convention", ["inverted", "paper"])
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
def test_a_sampled_network_is_the_masked_layer(
    p: float, convention: str, mask_bias: bool, place: torch.device
) -> None:
    layer = DropConnectLinear(
        30, 20, p=p, mask="batch", convention=convention, mask_bias=mask_bias, activation="tanh"
    )
    input = torch.randn(4, 30)
    state = make_rng_state(7, 9)
    for source in ({"seed": 7}, {"rng_state": state}):
        network = layer.sample(**source)
        expected = functional.dropconnect_linear(
            input, layer.weight, layer.bias, p, mask="batch", convention=convention,
            mask_bias=mask_bias, **source,
        )  # fmt: skip
        torch.testing.assert_close(network(input), expected.tanh())
        assert torch.equal(network(input), network.eval()(input))
    torch.manual_seed(4)
    network = layer.sample()
    torch.manual_seed(4)
    torch.testing.assert_close(network(input), layer(input))
    assert torch.nn.Linear in type(network).__mro__
    assert list(network.state_dict()) == ["weight", "bias"]
    before = layer.weight.clone()
    with torch.no_grad():
        network.weight.fill_(3.0)
    assert torch.equal(layer.weight, before)
    assert torch.equal(pickle.loads(pickle.dumps(network))(input), network(input))


def test_a_sampled_network_without_a_bias_in_half_precision() -> None:
    layer = DropConnectLinear(30, 20, bias=False, dtype=torch.bfloat16)
    network = layer.sample(seed=1)
    assert network.bias is None and network.weight.dtype == torch.bfloat16
    kept = network.weight != 0
    assert torch.equal(network.weight[kept], 2 * layer.weight[kept])
    assert 0.4 < kept.float().mean() < 0.6  # 600 connections: 5 standard errors


def test_wrong_inference() -> None:
    with pytest.raises(ValueError, match="inference must be one of 'mean', 'gaussian'"):
        DropConnectLinear(3, 2, inference="median")
    with pytest.raises(ValueError, match="needs activation="):
        DropConnectLinear(3, 2, inference="gaussian")
    with pytest.raises(ValueError, match="inference='relu_exact' has activation='relu', got 'tan"):
        DropConnectLinear(3, 2, inference="relu_exact", activation="tanh")
    with pytest.raises(ValueError, match="activation must be one of 'relu'"):
        DropConnectLinear(3, 2, activation="rleu")
    with pytest.raises(TypeError, match="activation must be a callable or one of"):
        DropConnectLinear(3, 2, activation=2)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        DropConnectLinear(3, 2, samples=0)
    with pytest.raises(TypeError, match="mask_bias must be a bool"):
        DropConnectLinear(3, 2, mask_bias=None)
    with pytest.raises(ValueError, match="at most one of generator, seed"):
        DropConnectLinear(3, 2, seed=1, generator=torch.Generator())
    for known in ("relu", torch.relu, torch.nn.functional.relu, torch.nn.ReLU(inplace=True)):
        assert (
            DropConnectLinear(3, 2, inference="relu_exact", activation=known).activation == "relu"
        )
