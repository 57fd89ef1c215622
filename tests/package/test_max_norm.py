"""max_norm_ against torch.renorm and against its own promise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fused_dropout import max_norm_
from fused_dropout.nn import DropConnectLinear

ORDERS = (0.5, 1.0, 2.0, 3.0, math.inf)


def norms_of_rows(weight: Tensor, p: float, dim: int) -> Tensor:
    rows = weight.double().movedim(dim, 0).flatten(1)
    return torch.linalg.vector_norm(rows, p, 1)


@pytest.mark.parametrize("p", ORDERS)
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_is_renorm(p: float, dim: int, dtype: torch.dtype, place: torch.device) -> None:
    torch.manual_seed(0)
    for shape in ((1, 1), (7, 5), (40, 300), (6, 5, 3, 2)):
        weight = torch.randn(shape, dtype=dtype)
        limit = norms_of_rows(weight, p, dim).median().item()
        expected = torch.renorm(weight, p, dim, limit)
        before = weight.clone()
        largest = max_norm_(weight, limit, dim=dim, p=p)
        # A rounding each of norm, factor and product.
        torch.testing.assert_close(weight, expected, rtol=8 * torch.finfo(dtype).eps, atol=0)
        within = norms_of_rows(before, p, dim) < limit * (1 - 1e-6)
        assert torch.equal(weight.movedim(dim, 0)[within], before.movedim(dim, 0)[within])
        exact = norms_of_rows(before, p, dim).amax()
        torch.testing.assert_close(largest.double(), exact, rtol=1e-5, atol=0)
        assert largest.shape == ()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_rounded_once(dtype: torch.dtype, place: torch.device) -> None:
    torch.manual_seed(1)
    weight = (30 * torch.randn(50, 2000)).to(dtype)  # norms near 1300, squares beyond fp16
    exact = torch.renorm(weight.double(), 2, 0, 1300.0)
    max_norm_(weight, 1300.0)
    error = (weight.double() - exact).abs()
    assert (error <= 0.51 * torch.finfo(dtype).eps * exact.abs() + torch.finfo(dtype).tiny).all()


def test_eps(place: torch.device) -> None:
    weight = torch.tensor([[3.0, 4.0], [0.3, 0.4]], dtype=torch.float64)
    for eps in (0.0, 1e-7, 0.5):
        scaled = weight.clone()
        max_norm_(scaled, 2.0, eps=eps)
        torch.testing.assert_close(scaled[0], weight[0] * (2.0 / (5.0 + eps)))
        assert torch.equal(scaled[1], weight[1])


def test_edges_of_the_limit(place: torch.device) -> None:
    weight = torch.tensor([[3.0, 4.0], [0.0, 0.0], [math.nan, 1.0]])
    untouched = weight.clone()
    max_norm_(weight, 5.0)
    assert torch.equal(weight.nan_to_num(), untouched.nan_to_num()), "a norm of max_norm is allowed"
    assert max_norm_(weight[:2], math.inf) == 5.0
    assert torch.equal(weight.nan_to_num(), untouched.nan_to_num())
    max_norm_(weight, 0.0, eps=0.0)
    assert torch.equal(weight[:2], torch.zeros(2, 2))


def network() -> nn.Sequential:
    layers = (
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(16, 5),
        nn.LayerNorm(5),
        DropConnectLinear(5, 2),
    )
    network = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(10.0)
    return network


def changed(model: nn.Module) -> list[str]:
    """Names of the parameters that are no longer 10."""
    return [name for name, weight in model.named_parameters() if (weight != 10).any()]


def test_modules(place: torch.device) -> None:
    model = network()
    largest = max_norm_(model, 1.5)
    assert largest.item() == pytest.approx(10 * math.sqrt(27))
    assert changed(model) == ["0.weight", "3.weight", "5.weight"]
    for name in changed(model):
        norms = norms_of_rows(model.get_parameter(name), 2, 0)
        torch.testing.assert_close(norms, torch.full_like(norms, 1.5), rtol=1e-6, atol=0)


def test_filter_and_frozen_parameters(place: torch.device) -> None:
    model = network()
    model[0].requires_grad_(False)
    seen = []

    def only_the_last(name: str, weight: nn.Parameter) -> bool:
        seen.append(name)
        return name.startswith("5.")

    max_norm_(model, 1.5, filter=only_the_last)
    assert changed(model) == ["5.weight"]
    assert "3.weight" in seen and "0.weight" not in seen
    max_norm_(model, 1.5)
    assert changed(model) == ["3.weight", "5.weight"]


def test_tensors_and_iterables(place: torch.device) -> None:
    model = network()
    max_norm_(model[3].weight, 1.5)
    assert changed(model) == ["3.weight"]
    max_norm_(model.parameters(), 1.5)
    assert changed(model) == ["0.weight", "3.weight", "5.weight"]
    frozen = [torch.full((2, 2), 10.0), torch.full((2, 3), 10.0, dtype=torch.float64)]
    assert max_norm_(frozen, 1.5) == pytest.approx(10 * math.sqrt(3))
    assert all((weight < 2).all() for weight in frozen), "tensors given are scaled, frozen or not"
    for nothing in ([], nn.ReLU(), [torch.ones(3)], [torch.ones(0, 3), torch.ones(3, 0)]):
        largest = max_norm_(nothing, 1.5)
        assert largest.item() == 0 and largest.shape == ()


def test_strides_of_the_weight_are_kept(place: torch.device) -> None:
    torch.manual_seed(2)
    dense = torch.randn(6, 5, 3, 2)
    expected = torch.renorm(dense, 2, 0, 1.5)
    last = dense.clone(memory_format=torch.channels_last)
    wide = torch.full((6, 5, 3, 4), 7.0)
    wide[..., ::2] = dense
    for weight in (last, wide[..., ::2]):
        strides = weight.stride()
        max_norm_(weight, 1.5)
        torch.testing.assert_close(weight, expected)
        assert weight.stride() == strides
    assert (wide[..., 1::2] == 7).all()


def test_after_the_optimizer_step(place: torch.device) -> None:
    torch.manual_seed(3)
    layer = nn.Linear(20, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=10.0)
    for _ in range(3):
        optimizer.zero_grad()
        layer(torch.randn(8, 20)).square().sum().backward()
        optimizer.step()
        before = max_norm_(layer, 0.7)
        assert not before.requires_grad and before > 0.7
        assert (norms_of_rows(layer.weight, 2, 0) < 0.7 * (1 + 1e-6)).all()
    assert layer.weight.requires_grad and layer.weight.is_leaf


def test_compiles(place: torch.device) -> None:
    torch.manual_seed(4)
    weight = torch.randn(6, 50)
    expected = torch.renorm(weight, 2, 0, 1.5)
    torch.compile(max_norm_, backend="aot_eager")(weight, 1.5)
    torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"max_norm": -1.0}, RuntimeError, r"max_norm must be at least 0, got -1\.0"),
        ({"max_norm": math.nan}, RuntimeError, "max_norm must be at least 0, got nan"),
        ({"max_norm": -(10**400)}, RuntimeError, "max_norm must be at least 0, got an int of"),
        ({"eps": 10**400}, RuntimeError, "eps must be finite and at least 0, got an int of"),
        ({"max_norm": "3"}, TypeError, "max_norm must be a number, got str"),
        ({"max_norm": None}, TypeError, "max_norm must be a number, got NoneType"),
        ({"p": 0.0}, RuntimeError, r"p must be above 0, got 0\.0"),
        ({"p": -2}, RuntimeError, "p must be above 0, got -2"),
        ({"eps": -1e-7}, RuntimeError, "eps must be finite and at least 0"),
        ({"eps": math.inf}, RuntimeError, "eps must be finite"),
        ({"dim": 2}, IndexError, r"dim must be in \[-2, 1\] for a weight of shape \[3, 4\], got 2"),
        ({"dim": 0.0}, TypeError, "dim must be an int, got float"),
        ({"parameters": torch.ones(3, 4).long()}, RuntimeError, "must be floating point.*int64"),
        ({"parameters": [1.0]}, TypeError, "iterable of tensors, got an element of type float"),
        ({"parameters": 5}, TypeError, "'int' object is not iterable"),
        ({"filter": lambda name, weight: True}, TypeError, "give the module itself"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], text: str) -> None:
    """The types of torch.renorm's exceptions, where it has them."""
    weight = torch.full((3, 4), 10.0)
    with pytest.raises(error, match=text):
        max_norm_(**{"parameters": weight, "max_norm": 1.0, **change})
    assert (weight == 10).all()


def test_renorm_raises_the_same_types() -> None:
    for arguments in ((2, 0, -1.0), (0, 0, 1.0)):
        with pytest.raises(RuntimeError):
            torch.renorm(torch.ones(3, 4), *arguments)
    with pytest.raises(IndexError):
        torch.renorm(torch.ones(3, 4), 2, 2, 1.0)


def test_a_bad_weight_is_found_before_anything_is_changed() -> None:
    good = torch.full((3, 4), 10.0)
    with pytest.raises(RuntimeError, match="int64"):
        max_norm_([good, torch.ones(3, 4).long()], 1.0)
    assert (good == 10).all()
