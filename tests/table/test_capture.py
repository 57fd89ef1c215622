"""What records a graph: make_fx, torch.export and torch.fx. The graphs train as eager code does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_calls import (
    SEED,
    Calling,
    assert_all_close,
    built,
    call_of,
    call_with,
    differentiable_positions,
    drawing_call_of,
    each_code,
    each_kernel,
    each_layer,
    each_op,
    each_operator,
    in_double,
    inputs_of,
    layer_results,
    leaves_of,
    or_torch_cannot,
    results,
    weighted,
    with_fixed_arity,
)
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fused_dropout._tools.table import Layer, Op, Operator

pytestmark = pytest.mark.filterwarnings("error:.*autograd kernel was not registered")

TRACERS: dict[str, dict[str, Any]] = {
    "real": {"tracing_mode": "real"},
    "fake": {"tracing_mode": "fake"},
    "symbolic": {"tracing_mode": "symbolic"},
    "pre_dispatch": {"pre_dispatch": True},
}


def detached(leaves: list[Tensor]) -> list[Tensor]:
    return [leaf.detach().clone().requires_grad_(leaf.requires_grad) for leaf in leaves]


# ---- make_fx -------------------------------------------------------------------------------------


@each_code("make_fx")
@pytest.mark.parametrize("tracer", TRACERS)
def test_make_fx(op: Op, tracer: str, place: torch.device) -> None:
    """Graphs traced with constants as well as with leaves have eager's gradients."""
    leaves = leaves_of(op)
    call = with_fixed_arity(call_of(op), len(leaves))
    wanted = results(call, leaves)
    for requires_grad in (True, False):
        examples = [leaf.detach().requires_grad_(requires_grad) for leaf in leaves]
        graph = make_fx(call, **TRACERS[tracer])(*examples)
        assert_all_close(results(graph, leaves), wanted)


@each_code("make_fx")
def test_make_fx_of_backward(op: Op, place: torch.device) -> None:
    leaves = leaves_of(op)
    call = with_fixed_arity(lambda *operands: results(call_of(op), operands), len(leaves))
    graph = make_fx(call, tracing_mode="symbolic")(*detached(leaves))
    assert_all_close(graph(*leaves), results(call_of(op), leaves))


@each_op("make_fx")
def test_make_fx_keeps_what_is_drawn_random(op: Op, place: torch.device) -> None:
    leaves = leaves_of(op)
    call = with_fixed_arity(drawing_call_of(op), len(leaves))
    graph = make_fx(call, tracing_mode="fake")(*leaves)
    torch.manual_seed(SEED)
    outputs = [graph(*leaves) for _ in range(8)]
    assert any(not torch.equal(outputs[0], output) for output in outputs)


@each_operator(differentiable=True)
@pytest.mark.parametrize("tracer", ["symbolic", "pre_dispatch"])
def test_make_fx_of_operators(operator: Operator, tracer: str, place: torch.device) -> None:
    """With all tensors as inputs of the graph: fake tensors do not mix with others.

    The other tracers run the same code, and record the operators through functions above.
    """
    for drawn in operator.calls():
        arguments = in_double(drawn)
        given = [index for index, each in enumerate(arguments) if isinstance(each, Tensor)]
        call = with_fixed_arity(scalar_of(operator, arguments, given), len(given))
        for position in differentiable_positions(operator, arguments):
            arguments[position] = arguments[position].clone().requires_grad_()
        tensors = [arguments[index] for index in given]
        graph = make_fx(call, **TRACERS[tracer])(*detached(tensors))
        assert_all_close(*(gradients_of(run, tensors) for run in (graph, call)))


def gradients_of(call: Callable[..., Tensor], tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """Of those that require one."""
    leaves = [tensor for tensor in tensors if tensor.requires_grad]
    return torch.autograd.grad(call(*tensors), leaves)


def scalar_of(
    operator: Operator, arguments: list[Any], positions: list[int]
) -> Callable[..., Tensor]:
    call = call_with(operator, arguments, positions)
    return lambda *tensors: weighted(call(*tensors))


# ---- torch.export --------------------------------------------------------------------------------


def exported(module: torch.nn.Module, examples: list[Tensor], strict: bool) -> torch.nn.Module:
    program = torch.export.export(module.train(), tuple(examples), strict=strict)
    return program.module()


@each_op("export")
def test_export(op: Op, place: torch.device) -> None:
    leaves = leaves_of(op)
    graph = exported(Calling(call_of(op)), detached(leaves), strict=False)
    assert_all_close(results(graph, leaves), results(call_of(op), leaves))


@each_kernel("export")
def test_strict_export(op: Op, place: torch.device) -> None:
    leaves = leaves_of(op)
    graph = exported(Calling(call_of(op)), detached(leaves), strict=True)
    assert_all_close(results(graph, leaves), results(call_of(op), leaves))


@each_kernel("export")
def test_decomposed_export(op: Op, place: torch.device) -> None:
    leaves = leaves_of(op)
    program = torch.export.export(Calling(call_of(op)), tuple(detached(leaves)), strict=False)
    graph = program.run_decompositions().module()
    assert_all_close(results(graph, leaves), results(call_of(op), leaves))


@each_layer()
@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
def test_export_of_modules(layer: Layer, strict: bool, place: torch.device) -> None:
    """On the CPU with the very masks of eager code."""

    def check(module: torch.nn.Module) -> None:
        inputs = inputs_of(layer)
        if not isinstance(module, layer.kind):
            inputs = inputs[:1]
        graph = exported(module, detached(inputs), strict)
        ours, wanted = layer_results(graph, inputs), layer_results(module, inputs)
        if place.type == "cpu":
            assert_all_close(ours, wanted)
        assert all(gradient.count_nonzero() for gradient in ours[1:])

    or_torch_cannot(check, built(layer), torch.nn.Dropout(0.4))


@each_operator(differentiable=True)
def test_export_of_operators(operator: Operator, place: torch.device) -> None:
    """A strict export is torch.compile's graph, which test_compiling.py makes of each operator."""
    for drawn in operator.calls():
        arguments = in_double(drawn)
        positions = differentiable_positions(operator, arguments)
        call = scalar_of(operator, arguments, positions)
        leaves = [arguments[position].clone().requires_grad_() for position in positions]
        graph = exported(Calling(call), detached(leaves), strict=False)
        assert_all_close(results(graph, leaves), results(call, leaves))


# ---- torch.fx ------------------------------------------------------------------------------------


@each_op("fx")
def test_symbolic_trace(op: Op, place: torch.device) -> None:
    leaves = leaves_of(op)
    call = with_fixed_arity(call_of(op), len(leaves))
    graph = torch.fx.symbolic_trace(call)
    called = [node.target for node in graph.graph.nodes if node.op == "call_function"]
    assert called == [getattr(op.function, "func", op.function)]
    assert_all_close(results(graph, leaves), results(call, leaves))


@each_layer()
def test_symbolic_trace_of_modules(layer: Layer, place: torch.device) -> None:
    module = torch.nn.Sequential() if len(layer.shapes) == 1 else built(layer)
    if len(layer.shapes) == 1:
        module.append(built(layer))
    inputs = inputs_of(layer)
    graph = torch.fx.symbolic_trace(module)
    assert_all_close(layer_results(graph, inputs), layer_results(module, inputs))
