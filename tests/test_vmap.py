"""The operators under torch.func.vmap: each item as if it were alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from fused_dropout import _ext, make_rng_state
from fused_dropout.functional import drop_path_add, dropconnect_linear, dropout

ITEMS = 5


@pytest.fixture(autouse=True)
def no_fallback() -> Iterator[None]:
    """A missing batching rule is a warning of torch's."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*batching rule")
        yield


def one_by_one(
    call: Callable[..., Tensor], batched: tuple[int | None, ...], *args: Tensor
) -> Tensor:
    """What vmap promises."""

    def of_item(item: int) -> list[Tensor]:
        pairs = zip(args, batched, strict=True)
        return [arg if dim is None else arg.select(dim, item) for arg, dim in pairs]

    return torch.stack([call(*of_item(item)) for item in range(ITEMS)])


@pytest.mark.parametrize("batched", [(0, 0), (1, 2), (-1, None), (None, 0)], ids=str)
@pytest.mark.parametrize("shared_dims", [[], [1], [0, 1]], ids=str)
def test_dropout(
    batched: tuple[int | None, ...], shared_dims: list[int], place: torch.device
) -> None:
    torch.manual_seed(0)
    state = make_rng_state(1, 2)
    sizes = {0: (ITEMS, 40, 7), 1: (40, ITEMS, 7), 2: (40, 7, ITEMS), -1: (40, 7, ITEMS)}
    input, residual = (torch.randn(sizes.get(dim, (40, 7))) for dim in batched)

    def call(input: Tensor, residual: Tensor) -> Tensor:
        return _ext.operators().dropout(input, residual, state, 0.3, shared_dims, 1.5, 0.25, -1.0)

    output = torch.func.vmap(call, in_dims=batched)(input, residual)
    assert torch.equal(output, one_by_one(call, batched, input, residual))


def test_dropout_with_a_state_for_each_item(place: torch.device) -> None:
    torch.manual_seed(1)
    input, states = torch.randn(40, 7), torch.randint(2**62, (ITEMS, 2))

    def call(input: Tensor, state: Tensor) -> Tensor:
        return _ext.operators().dropout(input, None, state, 0.3, [1], 1.5, 0.0, 0.0)

    output = torch.func.vmap(call, in_dims=(None, 0))(input, states)
    assert torch.equal(output, one_by_one(call, (None, 0), input, states))


@pytest.mark.parametrize("mask", ["row", "example", "batch", 3])
@pytest.mark.parametrize("storage", ["regenerate", "packed"])
@pytest.mark.parametrize(
    "batched", [(0, None, None), (2, None, None), (0, None, 0), (None, 1, None)], ids=str
)
def test_dropconnect_linear(
    batched: tuple[int | None, ...], mask: str | int, storage: str, place: torch.device
) -> None:
    torch.manual_seed(2)
    sizes = [(4, 2, 30), (9, 30), (9,)]
    args = []
    for size, dim in zip(sizes, batched, strict=True):
        shape = size if dim is None else (*size[:dim], ITEMS, *size[dim:])
        args.append(torch.randn(shape, requires_grad=True))

    def call(input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return dropconnect_linear(input, weight, bias, 0.3, mask=mask, mask_storage=storage, seed=3)

    with torch.no_grad():
        output = torch.func.vmap(call, in_dims=batched)(*args)
        expected = one_by_one(call, batched, *args)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(output == 0, expected == 0)


def test_gradients_per_item(place: torch.device) -> None:
    torch.manual_seed(3)
    x, branch, weights = torch.randn(3, ITEMS, 6, 4)

    def loss(x: Tensor, branch: Tensor, weights: Tensor) -> Tensor:
        total = drop_path_add(x, dropout(branch, 0.4, seed=5), 0.3, True, seed=4)
        return (total.square() * weights).sum()

    gradient = torch.func.grad(loss, argnums=1)
    output = torch.func.vmap(gradient)(x, branch, weights)
    torch.testing.assert_close(output, one_by_one(gradient, (0, 0, 0), x, branch, weights))
    assert 0 < output.count_nonzero() < output.numel()


@pytest.mark.parametrize("inner", ["same", "different"])
@pytest.mark.parametrize("outer", ["same", "different"])
def test_nested(inner: str, outer: str, place: torch.device) -> None:
    """Two levels of items, of which each draws or not."""

    def layer(rows: Tensor) -> Tensor:
        return dropconnect_linear(dropout(rows, 0.5), torch.ones(9, 50))

    def over_items(items: Tensor) -> Tensor:
        return torch.func.vmap(layer, randomness=inner)(items)

    torch.manual_seed(4)
    output = torch.func.vmap(over_items, randomness=outer)(torch.ones(2, 3, 6, 50))
    assert torch.equal(output[0, 0], output[0, 1]) == (inner == "same")
    assert torch.equal(output[0, 0], output[1, 0]) == (outer == "same")
