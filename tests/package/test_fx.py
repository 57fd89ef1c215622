"""Every layer under torch.fx, which calls it with stand-ins for tensors."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

from fused_dropout import nn

# Arguments of the layers' constructors, and the shapes of what they take.
TRACED: dict[str, tuple[tuple[Any, ...], tuple[tuple[int, ...], ...]]] = {
    "AlphaDropout": ((0.5,), ((4, 6),)),
    "BiasActDropoutAdd": ((6, 0.5, "gelu"), ((4, 6), (4, 6))),
    "ConcreteDropout": ((), ((4, 6),)),
    "DropBlock1d": ((0.3, 2), ((2, 3, 6),)),
    "DropBlock2d": ((0.3, 2), ((2, 3, 6, 6),)),
    "DropBlock3d": ((0.3, 2), ((2, 3, 4, 4, 6),)),
    "DropConnectLinear": ((6, 5), ((4, 6),)),
    "DropPath": ((0.5,), ((9, 6),)),
    "DropPathAdd": ((0.5,), ((9, 6), (9, 6))),
    "Dropout": ((0.5,), ((4, 6),)),
    "Dropout1d": ((0.5,), ((4, 6, 3),)),
    "Dropout2d": ((0.5,), ((4, 6, 3, 3),)),
    "Dropout3d": ((0.5,), ((4, 6, 3, 3, 2),)),
    "FeatureAlphaDropout": ((0.5,), ((4, 6, 3),)),
    "GaussianDropout": ((0.5,), ((4, 6),)),
    "LockedDropout": ((0.5,), ((4, 6),)),
    "StochasticDepth": ((0.5, "row"), ((9, 6),)),
    "VariationalDropoutLinear": ((6, 5), ((4, 6),)),
}


def test_torch_fx_traces_every_layer() -> None:
    layers = {name for name in nn.__all__ if issubclass(getattr(nn, name), torch.nn.Module)}
    assert layers == set(TRACED)
    for name, (arguments, shapes) in TRACED.items():
        inputs = [torch.randn(shape) for shape in shapes]
        for training in (True, False):
            layer = getattr(nn, name)(*arguments).train(training)
            traced = torch.fx.symbolic_trace(layer)
            outputs = []
            for call in (layer, traced):
                torch.manual_seed(3)
                outputs.append(call(*inputs))
            assert torch.equal(*outputs), name
            assert training == (not torch.equal(outputs[0], layer.eval()(*inputs))), name


def test_fx_traces_a_layer_as_one_node() -> None:
    layers = nn.StochasticDepth(0.5, "row"), nn.DropPath(0.5)
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), *layers)
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
