"""Without data: the shapes, strides and dtypes of eager results."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_calls import (
    built,
    call_of,
    each_layer,
    each_op,
    each_operator,
    inputs_of,
    operands_of,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fused_dropout._tools.table import DTYPES, Layer, Op, Operator

LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda tensor: tensor,
    "reversed": lambda tensor: (
        tensor.permute(*range(tensor.dim())[::-1]).contiguous().permute(*range(tensor.dim())[::-1])
    ),
    "gaps": lambda tensor: tensor.repeat_interleave(2, dim=-1)[..., ::2],
    "expanded": lambda tensor: tensor[:1].expand(tensor.shape),
}


def described(tensors: object) -> list[tuple]:
    return [
        (tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset())
        for tensor in torch.utils._pytree.tree_leaves(tensors)
    ]


@each_op("fake and meta")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_functions(op: Op, layout: str, place: torch.device) -> None:
    for dtype in DTYPES:
        operands = [LAYOUTS[layout](operand) for operand in operands_of(op, dtype)]
        wanted = described(call_of(op)(*operands))
        with FakeTensorMode() as mode:
            fakes = [mode.from_tensor(operand) for operand in operands]
            output = call_of(op)(*fakes)
            assert described(output) == wanted and output.device == operands[0].device
        meta = call_of(op)(*(operand.to("meta") for operand in operands))
        assert meta.is_meta and meta.dtype == dtype and meta.shape == output.shape
        assert layout == "expanded" or described(meta) == wanted


@each_op("fake and meta")
def test_gradients(op: Op, place: torch.device) -> None:
    leaves = [operand.requires_grad_() for operand in operands_of(op)]
    wanted = described(torch.autograd.grad(call_of(op)(*leaves).sum(), leaves))
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(leaf) for leaf in leaves]
        assert described(torch.autograd.grad(call_of(op)(*fakes).sum(), fakes)) == wanted
    metas = [leaf.detach().to("meta").requires_grad_() for leaf in leaves]
    assert described(torch.autograd.grad(call_of(op)(*metas).sum(), metas)) == wanted


@each_layer()
def test_modules(layer: Layer, place: torch.device) -> None:
    module, inputs = built(layer), inputs_of(layer)
    wanted = described(module(*inputs))
    module.to("meta")
    assert described(module(*(input.to("meta") for input in inputs))) == wanted


@each_operator()
def test_operators(operator: Operator, place: torch.device) -> None:
    """On meta tensors; opcheck has fake ones."""
    for arguments in operator.calls():
        wanted = described(operator.overload(*arguments))
        metas = [each.to("meta") if isinstance(each, Tensor) else each for each in arguments]
        found = described(operator.overload(*metas))
        assert [each[:2] for each in found] == [each[:2] for each in wanted]
