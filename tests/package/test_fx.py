"""Every layer under torch.fx, which calls it with stand-ins for tensors."""

from __future__ import annotations

import pickle

import pytest
import torch

from fused_dropout import nn
from fused_dropout._tools.table import Layer, layers


@pytest.mark.parametrize("row", layers(), ids=lambda row: row.name)
def test_torch_fx_traces_every_layer(row: Layer) -> None:
    inputs = [torch.randn(shape) for shape in row.shapes]
    for training in (True, False):
        layer = row.build().train(training)
        traced = torch.fx.symbolic_trace(layer)
        outputs = []
        for call in (layer, traced):
            torch.manual_seed(3)
            outputs.append(call(*inputs))
        assert torch.equal(*outputs)
        assert training == (not torch.equal(outputs[0], layer.eval()(*inputs)))


def test_fx_traces_a_layer_as_one_node() -> None:
    drops = nn.StochasticDepth(0.5, "row"), nn.DropPath(0.5)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), *drops)
    graph = torch.fx.Tracer().trace(model)
    names = [node.target.__name__ for node in graph.nodes if node.op == "call_function"]
    assert names == ["stochastic_depth", "drop_path"]
    traced = torch.fx.GraphModule(model, graph)
    input = torch.randn(40, 3)
    outputs = []
    for module in (model, traced, pickle.loads(pickle.dumps(traced))):
        torch.manual_seed(14)
        outputs.append(module(input))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def test_tracing_is_no_call_that_concrete_dropout_learns_its_features_from() -> None:
    layer = nn.ConcreteDropout()
    torch.fx.symbolic_trace(layer)
    with pytest.raises(RuntimeError, match="call the module first"):
        layer.regulariser()
