"""Derivatives of the functions: by autograd, in forward mode, and by torch.func."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from small_calls import (
    assert_all_close,
    call_of,
    direction_like,
    each_code,
    each_op,
    leaves_of,
    operands_of,
    reference_of,
    results,
)
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp

from fused_dropout._tools.table import Op


@each_op("gradient")
def test_gradients_follow_the_reference(op: Op, place: torch.device) -> None:
    leaves = leaves_of(op)
    assert_all_close(results(call_of(op), leaves), results(reference_of(op), leaves))


@each_op("gradient")
def test_gradcheck(op: Op, place: torch.device) -> None:
    assert torch.autograd.gradcheck(call_of(op), leaves_of(op), check_batched_grad=True)


@each_code("gradient")
def test_gradgradcheck(op: Op, place: torch.device) -> None:
    assert torch.autograd.gradgradcheck(
        call_of(op), leaves_of(op), check_batched_grad=True, check_rev_over_rev=True
    )


@each_code("in place")
def test_gradcheck_in_place(op: Op, place: torch.device) -> None:
    def in_place(input: Tensor) -> Tensor:
        return call_of(op)(input.clone(), inplace=True)

    leaves = leaves_of(op)
    assert torch.autograd.gradcheck(in_place, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(in_place, leaves)


@each_op("gradient")
def test_one_operand_at_a_time(op: Op, place: torch.device) -> None:
    """The others are constants: their gradients are not computed."""
    wanted = results(reference_of(op), leaves_of(op))[1:]
    for position, gradient in enumerate(wanted):
        operands = operands_of(op)
        leaf = operands[position].requires_grad_()
        output = call_of(op)(*operands)
        (ours,) = torch.autograd.grad(output, [leaf], direction_like(output))
        assert_all_close([ours], [gradient])


# ---- forward mode --------------------------------------------------------------------------------


@each_code("forward mode")
def test_gradcheck_in_forward_mode(op: Op, place: torch.device) -> None:
    assert torch.autograd.gradcheck(
        call_of(op),
        leaves_of(op),
        check_forward_ad=True,
        check_backward_ad=False,
        check_batched_forward_grad=True,
    )


@each_code("forward mode")
def test_gradgradcheck_forward_over_reverse(op: Op, place: torch.device) -> None:
    assert torch.autograd.gradgradcheck(
        call_of(op),
        leaves_of(op),
        check_fwd_over_rev=True,
        check_rev_over_rev=False,
        check_undefined_grad=False,
    )


@each_op("forward mode")
@pytest.mark.parametrize("grad_mode", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("requires_grad", [True, False], ids=["leaves", "constants"])
def test_a_dual_operand_gives_a_tangent(
    op: Op, requires_grad: bool, grad_mode: bool, place: torch.device
) -> None:
    gradients = results(reference_of(op), leaves_of(op))[1:]
    for position, gradient in enumerate(gradients):
        operands = [operand.requires_grad_(requires_grad) for operand in operands_of(op)]
        tangent = direction_like(operands[position]).cos()
        with torch.set_grad_enabled(grad_mode), forward_ad.dual_level():
            operands[position] = forward_ad.make_dual(operands[position], tangent)
            output = forward_ad.unpack_dual(call_of(op)(*operands))
        assert output.tangent is not None, op.operand_names[position]
        along = (output.tangent * direction_like(output.tangent)).sum()
        torch.testing.assert_close(along, (gradient * tangent).sum())


@each_op("in place")
def test_a_dual_operand_in_place(op: Op, place: torch.device) -> None:
    (operand,) = operands_of(op)
    tangent = operand.cos()
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(operand.clone(), tangent.clone())
        call_of(op)(dual, inplace=True)
        ours = forward_ad.unpack_dual(dual)
        wanted = forward_ad.unpack_dual(
            reference_of(op)(forward_ad.make_dual(operand, tangent)),
        )
    assert ours.tangent is not None
    assert_all_close([ours.primal, ours.tangent], [wanted.primal, wanted.tangent])


# ---- torch.func ----------------------------------------------------------------------------------

Transform = Callable[[Callable[..., Tensor], tuple[Tensor, ...]], Any]


def _positions(operands: tuple[Tensor, ...]) -> tuple[int, ...]:
    return tuple(range(len(operands)))


def _jvp_of_grad(loss: Callable[..., Tensor], operands: tuple[Tensor, ...]) -> Any:
    tangents = tuple(operand.cos() for operand in operands)
    return jvp(grad(loss, _positions(operands)), operands, tangents)


TRANSFORMS: dict[str, Transform] = {
    "grad": lambda loss, x: grad(loss, _positions(x))(*x),
    "jvp": lambda loss, x: jvp(loss, x, tuple(map(torch.cos, x))),
    "jacrev": lambda loss, x: jacrev(loss, _positions(x))(*x),
    "jacfwd": lambda loss, x: jacfwd(loss, _positions(x))(*x),
    "hessian": lambda loss, x: hessian(loss, _positions(x))(*x),
    "jacrev(jacrev)": lambda loss, x: jacrev(jacrev(loss, _positions(x)), _positions(x))(*x),
    "jacfwd(jacfwd)": lambda loss, x: jacfwd(jacfwd(loss, _positions(x)), _positions(x))(*x),
    "jvp(grad)": _jvp_of_grad,
}


# Torch has no forward mode over the forward mode of Functions: an error is right there.
FORWARD_TWICE = "jacfwd(jacfwd)"


@each_code("torch.func")
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_torch_func(op: Op, transform: str, place: torch.device) -> None:
    def loss_of(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *operands: call(*operands).pow(3).sum()

    def transformed(call: Callable[..., Tensor]) -> list[Tensor]:
        operands = tuple(operands_of(op))
        return torch.utils._pytree.tree_leaves(TRANSFORMS[transform](loss_of(call), operands))

    try:
        ours = transformed(call_of(op))
    except NotImplementedError:
        assert transform == FORWARD_TWICE
        return
    assert_all_close(ours, transformed(reference_of(op)))


@each_op("torch.func")
def test_torch_func_of_captured_operands(op: Op, place: torch.device) -> None:
    """An operand that an inner transform takes for a constant keeps the outer one's gradient."""
    first, *others = operands_of(op)

    def outer(call: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
        def of_operand(operand: Tensor) -> Tensor:
            inner = grad(lambda factor: (call(operand, *others) * factor).sum())
            return inner(call(first, *others).detach()).square().sum()

        return of_operand

    ours, wanted = (grad(outer(call))(first) for call in (call_of(op), reference_of(op)))
    assert_all_close([ours], [wanted])
