"""How the tests in this folder call the rows of fused_dropout/_tools/table/."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fused_dropout._tools.table import Layer, Op, Operator, operators, ops, ops_with

SEED = 3


def each_op(held_to: str) -> pytest.MarkDecorator:
    """Runs a test on the ops that are held to a property of the table."""
    return pytest.mark.parametrize("op", ops_with(held_to), ids=lambda op: op.name)


def each_code(held_to: str) -> pytest.MarkDecorator:
    """Runs a test on the ops but those that are another one in other dimensions."""
    rows = [op for op in ops_with(held_to) if not op.form_of]
    return pytest.mark.parametrize("op", rows, ids=lambda op: op.name)


def each_kernel(held_to: str) -> pytest.MarkDecorator:
    """Runs a slow test on the ops with operators of their own, which the others run as well."""
    rows = [op for op in ops_with(held_to) if op.operators]
    return pytest.mark.parametrize("op", rows, ids=lambda op: op.name)


def each_layer(*, forms: bool = True) -> pytest.MarkDecorator:
    """Runs a test on every module of the table, or without those in other dimensions."""
    rows = [layer for op in ops() for layer in op.layers if forms or not op.form_of]
    return pytest.mark.parametrize("layer", rows, ids=lambda layer: layer.name)


def each_operator(*, differentiable: bool = False) -> pytest.MarkDecorator:
    """Runs a test on every operator, or on every one that gives gradients."""
    rows = [row for row in operators() if row.differentiable or not differentiable]
    return pytest.mark.parametrize("operator", rows, ids=lambda operator: operator.name)


# ---- functions -----------------------------------------------------------------------------------


def operands_of(
    op: Op, dtype: torch.dtype = torch.float64, shape: tuple[int, ...] | None = None, seed: int = 0
) -> list[Tensor]:
    """Operands of the op's small call, on torch's default device."""
    draw = torch.Generator(torch.get_default_device()).manual_seed(seed)
    operands = op.operands(op.small[0] if shape is None else shape, draw)
    return [operand.to(dtype) for operand in operands]


def leaves_of(op: Op, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """The same, with gradients."""
    return [operand.requires_grad_() for operand in operands_of(op, dtype)]


def call_of(op: Op, **source: Any) -> Callable[..., Tensor]:
    """The op's function with the settings of its small call, by default with a seed."""
    return partial(op.function, **dict(op.small[1]), **(source or {"seed": SEED}))


def drawing_call_of(op: Op) -> Callable[..., Tensor]:
    """The same, drawing from torch's generator."""
    return partial(op.function, **dict(op.small[1]))


def reference_of(op: Op) -> Callable[..., Tensor]:
    """What `call_of` is to compute."""
    return partial(op.reference, **dict(op.small[1]), seed=SEED)


def with_fixed_arity(call: Callable[..., Any], count: int) -> Callable[..., Any]:
    """`call` with exactly `count` parameters, for tracers that read the signature."""
    forms: dict[int, Callable[..., Any]] = {
        0: lambda: call(),
        1: lambda a: call(a),
        2: lambda a, b: call(a, b),
        3: lambda a, b, c: call(a, b, c),
        4: lambda a, b, c, d: call(a, b, c, d),
        5: lambda a, b, c, d, e: call(a, b, c, d, e),
    }
    return forms[count]


class Calling(torch.nn.Module):
    """A module that calls a function."""

    def __init__(self, call: Callable[..., Any]) -> None:
        super().__init__()
        self.call = call

    def forward(self, *operands: Tensor) -> Any:
        return self.call(*operands)


# ---- modules -------------------------------------------------------------------------------------


def built(layer: Layer, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    """The module with parameters that do not depend on what ran before."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return layer.build().to(dtype)


def inputs_of(layer: Layer, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Inputs for the module, with gradients."""
    draw = torch.Generator(torch.get_default_device()).manual_seed(2)
    drawn = [
        torch.randn(shape, generator=draw, dtype=dtype, device=draw.device)
        for shape in layer.shapes
    ]
    return [tensor.requires_grad_() for tensor in drawn]


def layer_results(module: torch.nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Output and gradients of inputs and parameters, after torch.manual_seed."""
    torch.manual_seed(SEED)
    parameters = dict(module.named_parameters())
    leaves = [*inputs, *(parameters[name] for name in sorted(parameters))]
    return results(lambda *_: module(*inputs), leaves)


# ---- operators -----------------------------------------------------------------------------------


def argument_names(operator: Operator) -> list[str]:
    """The names in the operator's schema."""
    return [argument.name for argument in operator.overload._schema.arguments]


def in_double(arguments: Sequence[Any]) -> list[Any]:
    """The same arguments with every floating tensor in float64."""
    return [argument.double() if is_floating(argument) else argument for argument in arguments]


def is_floating(argument: object) -> bool:
    return isinstance(argument, Tensor) and argument.is_floating_point()


def call_with(
    operator: Operator, arguments: Sequence[Any], positions: Sequence[int]
) -> Callable[..., Any]:
    """The operator as a function of some of its arguments; it writes to none of them."""

    def call(*tensors: Tensor) -> Any:
        full = list(arguments)
        for position, tensor in zip(positions, tensors, strict=True):
            full[position] = tensor
        if operator.in_place:
            full[0] = full[0].clone()
        return operator.overload(*full)

    return call


def differentiable_positions(operator: Operator, arguments: Sequence[Any]) -> list[int]:
    """Which of the arguments the operator differentiates; None is not among them."""
    names = argument_names(operator)
    positions = [names.index(name) for name in operator.differentiable]
    return [position for position in positions if arguments[position] is not None]


# ---- results -------------------------------------------------------------------------------------


def direction_like(output: Tensor) -> Tensor:
    """Fixed numbers to weight the output with; no random ones, which tracers would record."""
    count = torch.arange(output.numel(), device=output.device, dtype=torch.float64)
    return (0.5 + count).cos().view(output.shape).to(output.dtype)


def weighted(output: Any) -> Tensor:
    """A scalar that depends on every differentiable element of the output or outputs."""
    outputs = output if isinstance(output, (tuple, list)) else (output,)
    floating = [tensor for tensor in outputs if tensor.is_floating_point()]
    return torch.stack([(each * direction_like(each)).sum() for each in floating]).sum()


def results(call: Callable[..., Tensor], leaves: Sequence[Tensor]) -> list[Tensor]:
    """[output, gradient of each leaf]; an output without gradients is an error."""
    output = call(*leaves)
    gradients = torch.autograd.grad(output, leaves, direction_like(output))
    return [tensor.detach() for tensor in (output, *gradients)]


def assert_all_close(ours: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    """Equal but for the order of sums, in float64."""
    for one, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def assert_same_bits(ours: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
    for one, other in zip(ours, wanted, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)


# ---- torch's own limits --------------------------------------------------------------------------


def or_torch_cannot(
    check: Callable[[Any], None], ours: Any, torchs: Any = torch.nn.functional.dropout
) -> None:
    """`check` passes on ours, or fails on torch's own dropout with the same type of error."""
    try:
        check(ours)
    except Exception as error:
        try:
            check(torchs)
        except type(error):
            return
        raise
