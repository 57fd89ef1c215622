"""Derivatives of the operators themselves: right, or an error; never missing without a word."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from small_calls import (
    call_with,
    differentiable_positions,
    each_operator,
    in_double,
    is_floating,
    weighted,
)
from torch import Tensor

from fused_dropout._tools.table import Operator

# Torch's word for an operator without derivatives.
pytestmark = pytest.mark.filterwarnings("error:.*autograd kernel was not registered")


@each_operator(differentiable=True)
def test_gradcheck(operator: Operator, place: torch.device) -> None:
    for drawn in operator.calls():
        arguments = in_double(drawn)
        positions = differentiable_positions(operator, arguments)
        call = call_with(operator, arguments, positions)
        leaves = [arguments[position].clone().requires_grad_() for position in positions]
        assert torch.autograd.gradcheck(call, leaves, fast_mode=True, check_batched_grad=True)


@each_operator(differentiable=True)
def test_gradgradcheck(operator: Operator, place: torch.device) -> None:
    for drawn in operator.calls():
        arguments = in_double(drawn)
        positions = differentiable_positions(operator, arguments)
        call = call_with(operator, arguments, positions)
        leaves = [arguments[position].clone().requires_grad_() for position in positions]
        assert torch.autograd.gradgradcheck(call, leaves, fast_mode=True)


@each_operator(differentiable=True)
def test_what_is_written_to_is_seen_by_autograd(operator: Operator, place: torch.device) -> None:
    """In place: the input is the result, and whoever saved it for backward is told."""
    for arguments in operator.calls():
        if not operator.in_place:
            tensors = [each for each in arguments if isinstance(each, Tensor)]
            versions = [tensor._version for tensor in tensors]
            operator.overload(*arguments)
            assert [tensor._version for tensor in tensors] == versions
            continue
        changed = arguments[0].clone()
        leaf = torch.ones_like(changed, requires_grad=True)
        product = leaf * changed
        assert operator.overload(changed, *arguments[1:]) is changed
        assert not torch.equal(changed, arguments[0])
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.sum().backward()


def has_influence(call: Callable[[Tensor], Any], argument: Tensor) -> bool:
    """Whether the result of `call` depends on its argument."""
    before, after = (
        torch.utils._pytree.tree_leaves(call(value)) for value in (argument, 2 * argument + 1)
    )
    return any(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


def floating_arguments(
    operator: Operator,
) -> list[tuple[Callable[[Tensor], Any], Tensor, bool]]:
    """(operator as a function of one argument, the argument, whether it is differentiable)."""
    found = []
    for drawn in operator.calls():
        arguments = in_double(drawn)
        for position, argument in enumerate(arguments):
            if is_floating(argument):
                known = position in differentiable_positions(operator, arguments)
                found.append((call_with(operator, arguments, [position]), argument, known))
    return found


@each_operator()
def test_an_argument_without_gradient_has_no_influence_or_raises(
    operator: Operator, place: torch.device
) -> None:
    for call, argument, differentiable in floating_arguments(operator):
        if differentiable or not has_influence(call, argument):
            continue
        leaf = argument.clone().requires_grad_()
        with pytest.raises((RuntimeError, NotImplementedError)):
            torch.autograd.grad(weighted(call(leaf)), leaf)


def tangent_of(call: Callable[[Tensor], Any], argument: Tensor, tangent: Tensor) -> Tensor | None:
    """The tangent of the weighted result."""
    with forward_ad.dual_level():
        output = weighted(call(forward_ad.make_dual(argument, tangent)))
        return forward_ad.unpack_dual(output).tangent


@each_operator()
@pytest.mark.parametrize("grad_mode", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("requires_grad", [True, False], ids=["leaf", "constant"])
def test_a_tangent_is_right_or_raises(
    operator: Operator, requires_grad: bool, grad_mode: bool, place: torch.device
) -> None:
    for call, argument, _ in floating_arguments(operator):
        if not has_influence(call, argument):
            continue
        leaf = argument.clone().requires_grad_(requires_grad)
        tangent = argument.cos()
        with torch.set_grad_enabled(grad_mode):
            try:
                ours = tangent_of(call, leaf, tangent)
            except (RuntimeError, NotImplementedError):
                continue
        assert ours is not None, "the tangent is missing"
        other = argument.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(weighted(call(other)), other)
        torch.testing.assert_close(ours, (gradient * tangent).sum())


@each_operator(differentiable=True)
def test_jvp_is_right_or_raises(operator: Operator, place: torch.device) -> None:
    for call, argument, differentiable in floating_arguments(operator):
        if not differentiable:
            continue
        tangent = argument.cos()

        def loss(tensor: Tensor, call: Callable[[Tensor], Any] = call) -> Tensor:
            return weighted(call(tensor))

        gradient = torch.func.grad(loss)(argument)
        try:
            _, ours = torch.func.jvp(loss, (argument,), (tangent,))
        except (RuntimeError, NotImplementedError):
            continue
        torch.testing.assert_close(ours, (gradient * tangent).sum())
