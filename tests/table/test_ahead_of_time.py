"""AOTInductor: ops with their gradients, and all modules in training mode, in one package."""

from __future__ import annotations

import pytest
import torch
from small_calls import (
    Calling,
    assert_all_close,
    built,
    call_of,
    each_code,
    each_op,
    inputs_of,
    leaves_of,
    results,
)
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from fused_dropout._tools.table import Op, ops_with

pytestmark = pytest.mark.slow
OPS = ops_with("AOTInductor")
WITH_GRADIENTS = [op for op in OPS if not op.form_of]


class Everything(torch.nn.Module):
    """Outputs and gradients of the small calls, and outputs of the modules."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleDict({op.name: built(op.layers[0]) for op in OPS})
        self.graphs = torch.nn.ModuleDict({op.name: with_gradients(op) for op in WITH_GRADIENTS})

    def forward(
        self, operands: dict[str, list[Tensor]], inputs: dict[str, list[Tensor]]
    ) -> tuple[dict[str, list[Tensor]], dict[str, Tensor]]:
        numbers = {name: graph(*operands[name]) for name, graph in self.graphs.items()}
        return numbers, {name: layer(*inputs[name]) for name, layer in self.layers.items()}


def with_gradients(op: Op) -> torch.nn.Module:
    """The small call and its backward as one graph."""
    operands = [leaf.detach() for leaf in leaves_of(op)]

    def both(*operands: Tensor) -> list[Tensor]:
        return results(call_of(op), [operand.detach().requires_grad_() for operand in operands])

    return make_fx(Calling(both), tracing_mode="fake")(*operands)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, list[dict]]:
    """What the package computes: numbers of the ops, and of the modules in three runs."""
    package = tmp_path_factory.mktemp("package") / "everything.pt2"
    operands = {op.name: [leaf.detach() for leaf in leaves_of(op)] for op in WITH_GRADIENTS}
    inputs = {op.name: [each.detach() for each in inputs_of(op.layers[0])] for op in OPS}
    everything = Everything().train()
    with torch.no_grad():
        program = torch.export.export(everything, (operands, inputs), strict=False)
    torch._inductor.aoti_compile_and_package(program, package_path=str(package))
    loaded = torch._inductor.aoti_load_package(str(package))
    runs = [loaded(operands, inputs) for _ in range(3)]
    return runs[0][0], [run[1] for run in runs]


@each_code("AOTInductor")
def test_ops_and_gradients(op: Op, compiled: tuple[dict, list[dict]]) -> None:
    assert_all_close(compiled[0][op.name], results(call_of(op), leaves_of(op)))


@each_op("AOTInductor")
def test_modules_drop_and_draw_anew(op: Op, compiled: tuple[dict, list[dict]]) -> None:
    outputs = [run[op.name] for run in compiled[1]]
    module = built(op.layers[0])
    inputs = inputs_of(op.layers[0])
    shape = module.train()(*inputs).shape  # of PatchDropout less than in evaluation
    dense = module.eval()(*inputs).detach()
    assert all(output.shape == shape for output in outputs)
    assert any(not torch.equal(outputs[0], output) for output in outputs[1:])
    assert not torch.equal(outputs[0], dense)
