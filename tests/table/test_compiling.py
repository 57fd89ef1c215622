"""Under torch.compile: one graph, eager's numbers and gradients, and fresh masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from small_calls import (
    SEED,
    assert_all_close,
    assert_same_bits,
    built,
    call_of,
    call_with,
    differentiable_positions,
    direction_like,
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
    operands_of,
    results,
    weighted,
    with_fixed_arity,
)
from torch import Tensor

from fused_dropout import make_rng_state
from fused_dropout._tools.table import Layer, Op, Operator, op_named
from fused_dropout.nn import DropConnectLinear

pytestmark = pytest.mark.filterwarnings("error:.*autograd kernel was not registered")


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield


def in_one_graph(call: Callable, backend: str = "aot_eager", **options: bool) -> Callable:
    return torch.compile(call, backend=backend, fullgraph=True, **options)


@each_op("compile")
def test_numbers_and_gradients(op: Op, place: torch.device) -> None:
    leaves = leaves_of(op)
    compiled = in_one_graph(call_of(op))
    if leaves:
        assert_all_close(results(compiled, leaves), results(call_of(op), leaves))
    else:
        assert_same_bits([compiled()], [call_of(op)()])


@each_kernel("strides")
def test_transposed_operands(op: Op, place: torch.device) -> None:
    """Outputs and gradients lie in memory as eager's do."""

    def transposed(operand: Tensor) -> Tensor:
        order = tuple(reversed(range(operand.dim())))
        return operand.detach().permute(order).contiguous().permute(order).requires_grad_()

    leaves = list(map(transposed, leaves_of(op)))
    ours, wanted = (results(call, leaves) for call in (in_one_graph(call_of(op)), call_of(op)))
    assert_all_close(ours, wanted)
    assert ours[0].stride() == wanted[0].stride()


@each_kernel("strides")
def test_sizes_as_variables(op: Op, place: torch.device) -> None:
    """dynamic=True makes variables of sizes and of Python numbers."""
    leaves = leaves_of(op)
    compiled = in_one_graph(call_of(op), dynamic=True)
    assert_all_close(results(compiled, leaves), results(call_of(op), leaves))


@pytest.mark.parametrize("storage", ["regenerate", "packed"])
def test_dropconnect_s_mask_storages(storage: str, place: torch.device) -> None:
    layer = DropConnectLinear(40, 9, p=0.3, mask_storage=storage).double()
    leaves = [torch.randn(6, 40, dtype=torch.float64, requires_grad=True)]
    compiled = in_one_graph(layer)
    runs = [layer_results(run, leaves) for run in (compiled, compiled, layer)]
    assert_all_close(runs[0], runs[1])
    if place.type == "cpu":
        assert_all_close(runs[0], runs[2])


@each_code("in place")
def test_in_place(op: Op, place: torch.device) -> None:
    def in_place(input: Tensor) -> Tensor:
        changed = input * 2
        return call_of(op)(changed, inplace=True) + changed

    leaves = leaves_of(op)
    assert_all_close(results(in_one_graph(in_place), leaves), results(in_place, leaves))
    given, changed = operands_of(op) + operands_of(op)
    in_one_graph(lambda input: call_of(op)(input, inplace=True))(changed)
    assert_all_close([changed], [call_of(op)(given)])


@each_kernel("random sources")
def test_two_equal_calls_in_one_graph_draw_two_masks(op: Op, place: torch.device) -> None:
    """torch.compile merges equal calls of operators that it takes for pure."""
    draw = drawing_call_of(op)
    operands = operands_of(op)

    def often(*operands: Tensor) -> Tensor:
        return torch.stack([draw(*operands) for _ in range(3)])

    torch.manual_seed(SEED)
    compiled = in_one_graph(often)
    first, again = compiled(*operands), compiled(*operands)
    assert any(not torch.equal(first[0], other) for other in first)
    assert not torch.equal(first, again)


LINEAR = ("dropout", "gaussian_dropout", "concrete_dropout", "drop_block2d", "dropconnect_linear")


@pytest.mark.parametrize("op", map(op_named, LINEAR), ids=lambda op: op.name)
def test_backward_uses_what_forward_drew(op: Op, place: torch.device) -> None:
    """Where the output is linear in the input, <input, gradient> = <direction, output>."""
    input, *others = leaves_of(op)
    if op.name == "dropconnect_linear":
        others[1] = torch.zeros_like(others[1])  # the bias would make it affine
    output = in_one_graph(drawing_call_of(op))(input, *others)
    (gradient,) = torch.autograd.grad(output, input, direction_like(output))
    assert output.count_nonzero()
    assert_all_close([(input * gradient).sum()], [(output * direction_like(output)).sum()])


@each_kernel("random sources")
def test_seeds_and_states_do_not_recompile(op: Op, place: torch.device) -> None:
    """The first seed may be taken for a constant; the second makes it a variable."""
    settings = dict(op.small[1])
    operands = operands_of(op)

    def by_seed(seed: int) -> Tensor:
        return op.function(*operands, seed=seed, **settings)

    def by_state(state: Tensor) -> Tensor:
        return op.function(*operands, rng_state=state, **settings)

    for call, most, sources in (
        (by_seed, 2, [3, -4, 5, 2**40, 7]),
        (by_state, 1, [make_rng_state(seed, 1) for seed in range(4)]),
    ):
        torch._dynamo.reset()
        counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
        compiled = in_one_graph(call, backend=counter)
        for source in sources:
            assert_all_close([compiled(source)], [call(source)])
        assert counter.frame_count <= most


@each_layer(forms=False)
def test_modules(layer: Layer, place: torch.device) -> None:
    """On the CPU manual_seed gives eager's masks; everywhere it gives the same ones again."""
    module, inputs = built(layer), inputs_of(layer)
    compiled = in_one_graph(module)
    first, again = layer_results(compiled, inputs), layer_results(compiled, inputs)
    assert_all_close(first, again)
    if place.type == "cpu":
        assert_all_close(first, layer_results(module, inputs))
    assert not torch.equal(compiled(*inputs), compiled(*inputs))
    module.eval()
    torch.testing.assert_close(compiled(*inputs), module(*inputs))


@each_operator(differentiable=True)
def test_operators(operator: Operator, place: torch.device) -> None:
    arguments = in_double(operator.calls()[0])
    positions = differentiable_positions(operator, arguments)
    call = call_with(operator, arguments, positions)
    scalar = with_fixed_arity(lambda *tensors: weighted(call(*tensors)), len(positions))
    leaves = [arguments[position].clone().requires_grad_() for position in positions]
    assert_all_close(results(in_one_graph(scalar), leaves), results(scalar, leaves))


@each_kernel("torch.func")
def test_torch_func_inside(op: Op, place: torch.device) -> None:
    def loss(*operands: Tensor) -> Tensor:
        return call_of(op)(*operands).square().sum()

    operands = operands_of(op)
    gradient = torch.func.grad(loss)
    assert_all_close([in_one_graph(gradient)(*operands)], [gradient(*operands)])


def test_inductor_on_several_ops_at_once(place: torch.device) -> None:
    """Few, since compiling C++ or Triton takes longer than all else here."""
    rows = [op_named(name) for name in ("dropout", "drop_block2d", "dropconnect_linear")]
    leaves = [leaves_of(op) for op in rows]

    def several(leaves: list[list[Tensor]]) -> list[Tensor]:
        pairs = zip(rows, leaves, strict=True)
        return [call_of(op)(*operands) for op, operands in pairs]

    compiled = in_one_graph(several, backend="inductor")
    flat = [leaf for operands in leaves for leaf in operands]
    found = []
    for run in (several, compiled):
        outputs = run(leaves)
        directions = list(map(direction_like, outputs))
        found.append([*outputs, *torch.autograd.grad(outputs, flat, directions)])
    assert_all_close(*found)
