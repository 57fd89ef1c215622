"""Under torch.func.vmap every item is as if it were alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from small_calls import (
    SEED,
    assert_all_close,
    call_of,
    call_with,
    direction_like,
    drawing_call_of,
    each_code,
    each_op,
    each_operator,
    operands_of,
    weighted,
)
from torch import Tensor
from torch.func import grad, vmap

from fused_dropout._tools.table import Case, Op, Operator, op_named

ITEMS = 3
DRAWS = 20  # enough that equal masks for all of them are no chance

# Torch's word for an operator without a rule, which it then calls once for each item.
pytestmark = pytest.mark.filterwarnings("error:.*batching rule")


@pytest.fixture(autouse=True)
def fallback_is_announced() -> Iterator[None]:
    """Torch warns of the fallback in every call."""
    torch._C._functorch._set_vmap_fallback_warning_enabled(True)
    yield


def batches_of(op: Op) -> list[Tensor]:
    """The operands of several small calls, each stacked along a new first dimension."""
    drawn = [operands_of(op, seed=seed) for seed in range(ITEMS)]
    return [torch.stack(operands) for operands in zip(*drawn, strict=True)]


def layouts(count: int) -> Iterator[tuple[int | None, ...]]:
    """in_dims with each of the operands batched alone, then all, first and last."""
    for position in range(count):
        yield tuple(0 if index == position else None for index in range(count))
    yield (0,) * count
    yield (-1,) * count


def one_by_one(
    call: Callable[..., Any], in_dims: Sequence[int | None], operands: Sequence[Tensor]
) -> Tensor:
    """What vmap promises."""

    def of_item(item: int) -> list[Tensor]:
        pairs = zip(operands, in_dims, strict=True)
        return [tensor if dim is None else tensor.select(dim, item) for tensor, dim in pairs]

    return torch.stack([call(*of_item(item)) for item in range(ITEMS)])


def arranged(batches: Sequence[Tensor], in_dims: Sequence[int | None]) -> list[Tensor]:
    """The batches with the items along `in_dims`, or their first item."""
    pairs = zip(batches, in_dims, strict=True)
    return [batch[0] if dim is None else batch.movedim(0, dim) for batch, dim in pairs]


@each_op("vmap")
def test_operands(op: Op, place: torch.device) -> None:
    for in_dims in layouts(len(op.operand_names)):
        operands = arranged(batches_of(op), in_dims)
        output = vmap(call_of(op), in_dims=in_dims)(*operands)
        assert_all_close([output], [one_by_one(call_of(op), in_dims, operands)])


DROPCONNECT = op_named("dropconnect_linear")


@pytest.mark.parametrize("settings", DROPCONNECT.settings, ids=str)
def test_dropconnect_in_each_mask_mode(settings: Case, place: torch.device) -> None:
    """The batch takes another product where items share the weight than where they do not."""
    batches = [
        torch.stack(drawn) for drawn in zip(*map(dropconnect_operands, range(ITEMS)), strict=True)
    ]
    call = partial(DROPCONNECT.function, seed=SEED, **dict(settings))
    for in_dims in layouts(len(batches)):
        operands = [batch.requires_grad_() for batch in arranged(batches, in_dims)]
        output = vmap(call, in_dims=in_dims)(*operands)
        assert_all_close([output], [one_by_one(call, in_dims, operands)])


def dropconnect_operands(seed: int) -> list[Tensor]:
    """Four examples of two rows."""
    return operands_of(DROPCONNECT, shape=(4, 2, 30), seed=seed)


@each_op("in place")
def test_in_place(op: Op, place: torch.device) -> None:
    """As the call that is not in place, with the gradient of each item."""

    def in_place(item: Tensor) -> tuple[Tensor, Tensor]:
        output = call_of(op)(item * 1, inplace=True)
        return output.square().sum(), output

    def elsewhere(item: Tensor) -> tuple[Tensor, Tensor]:
        output = call_of(op)(item)
        return output.square().sum(), output

    (items,) = batches_of(op)
    ours, wanted = (vmap(grad(loss, has_aux=True))(items) for loss in (in_place, elsewhere))
    assert_all_close(ours, wanted)


@each_code("vmap")
def test_gradients_of_items(op: Op, place: torch.device) -> None:
    """vmap of grad, and backward through vmap."""

    def loss(*operands: Tensor) -> Tensor:
        output = call_of(op)(*operands)
        return (output.square() * direction_like(output)).sum()

    for in_dims in layouts(len(op.operand_names)):
        operands = arranged(batches_of(op), in_dims)
        for position, dim in enumerate(in_dims):
            gradient = grad(loss, position)
            output = vmap(gradient, in_dims=in_dims)(*operands)
            assert_all_close([output], [one_by_one(gradient, in_dims, operands)])
            if dim is None:
                continue
            leaf = operands[position].detach().requires_grad_()
            leaves = [leaf if index == position else each for index, each in enumerate(operands)]
            (batched,) = torch.autograd.grad(vmap(loss, in_dims=in_dims)(*leaves).sum(), leaf)
            assert_all_close([batched.movedim(dim, 0)], [output])


@each_op("vmap")
def test_random_states(op: Op, place: torch.device) -> None:
    states = torch.randint(2**62, (ITEMS, 2), generator=torch.Generator(place).manual_seed(5))
    settings = dict(op.small[1])

    def call(state: Tensor, *operands: Tensor) -> Tensor:
        return op.function(*operands, rng_state=state, **settings)

    count = len(op.operand_names)
    for in_dims in ((0, *(None,) * count), (0, *(0,) * count)):
        operands = [states, *arranged(batches_of(op), in_dims[1:])]
        output = vmap(call, in_dims=in_dims)(*operands)
        assert_all_close([output], [one_by_one(call, in_dims, operands)])


@each_op("vmap")
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "captured"])
@pytest.mark.parametrize("requires_grad", [True, False], ids=["leaves", "constants"])
def test_randomness(op: Op, batched: bool, requires_grad: bool, place: torch.device) -> None:
    """Whether items draw the same mask, also for operands that the mapped function captures."""
    operands = [operand.requires_grad_(requires_grad) for operand in operands_of(op)]
    draw = drawing_call_of(op)

    def of_items(randomness: str) -> Tensor:
        if batched:
            items = [operand.expand(DRAWS, *operand.shape) for operand in operands]
            return vmap(draw, randomness=randomness)(*items)
        return vmap(lambda item: draw(*operands) + item, randomness=randomness)(
            torch.zeros(DRAWS, dtype=torch.float64)
        )

    torch.manual_seed(SEED)
    same, different = of_items("same"), of_items("different")
    assert all(torch.equal(item, same[0]) for item in same)
    assert any(not torch.equal(item, different[0]) for item in different)
    with pytest.raises(RuntimeError, match="random"):
        of_items("error")


@each_op("vmap")
def test_randomness_at_two_levels(op: Op, place: torch.device) -> None:
    operands = operands_of(op)
    draw = drawing_call_of(op)
    zeros = torch.zeros(DRAWS, 4, dtype=torch.float64)
    torch.manual_seed(SEED)
    for outer in ("same", "different"):
        for inner in ("same", "different"):

            def over_items(items: Tensor, inner: str = inner) -> Tensor:
                return vmap(lambda item: draw(*operands) + item, randomness=inner)(items)

            output = vmap(over_items, randomness=outer)(zeros)
            alike_inside = all(torch.equal(output[:, 0], output[:, k]) for k in range(4))
            alike_outside = all(torch.equal(output[0], output[k]) for k in range(DRAWS))
            assert (alike_inside, alike_outside) == (inner == "same", outer == "same")


@each_operator(differentiable=True)
def test_operators(operator: Operator, place: torch.device) -> None:
    """Each tensor argument of the operators alone, mask bits and random states among them."""
    for arguments in operator.calls():
        for position, argument in enumerate(arguments):
            if not isinstance(argument, Tensor):
                continue
            items = argument.clone().expand(ITEMS, *argument.shape).contiguous()
            if argument.dtype == torch.int64:
                items[:, 0] += torch.arange(ITEMS)
            elif argument.is_floating_point():
                items *= torch.linspace(0.5, 1.0, ITEMS).view(-1, *[1] * argument.dim())
            call = call_with(operator, arguments, [position])

            def scalar(item: Tensor, call: Callable[..., Any] = call) -> Tensor:
                return weighted(call(item))

            if operator.in_place and position > 0:  # one tensor cannot hold the results of many
                with pytest.raises(RuntimeError, match="vmap"):
                    vmap(scalar)(items)
                continue
            torch.testing.assert_close(vmap(scalar)(items), one_by_one(scalar, [0], [items]))
