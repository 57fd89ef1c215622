"""What drops in a model and is no layer: rates that modules hand on to functions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.fx
from torch import nn

from fused_dropout._models.check.functions import function_drops
from fused_dropout._models.dropout_layers import (
    drop_rates,
    drops,
    drops_among_others,
    functions_that_drop,
    mode_use,
)
from fused_dropout._models.replace.report import rate_of_layer

#: The rate, None where it is not known, and why it stays.
Unreached = tuple[float | None, str]


def unreached(module: nn.Module) -> Unreached | None:
    """What the module itself drops by functions; None: nothing, or only what its children drop."""
    if isinstance(module, nn.MultiheadAttention):
        return _of_attention(module)
    if isinstance(module, nn.RNNBase):
        return _of_rnn(module)
    if isinstance(module, torch.fx.GraphModule):
        return _of_graph(module)
    if isinstance(module, torch.jit.ScriptModule):
        return _of_script(module)
    if type(module).__module__.startswith("torch."):
        return None
    return _of_source(module)


def _of_attention(module: nn.MultiheadAttention) -> Unreached | None:
    if not module.dropout > 0:
        return None
    return module.dropout, "torch's function drops attention weights by this number; no layer does"


def _of_rnn(module: nn.RNNBase) -> Unreached | None:
    if not module.dropout > 0 or module.num_layers < 2:
        return None
    return (
        module.dropout,
        "torch's operator drops between the layers of the network; no module does",
    )


def _of_graph(module: torch.fx.GraphModule) -> Unreached | None:
    found: dict[str, float | None] = {}
    for node in module.graph.nodes:
        if node.op != "call_function":
            continue
        dropping = function_drops(node.target, node.args, node.kwargs)
        name = getattr(node.target, "__name__", str(node.target))
        if dropping is not None and dropping.p != 0 and node.kwargs.get("training") is not False:
            found[name] = dropping.p
        elif dropping is None and "dropout" in name:
            found[name] = None
    if not found:
        return None
    p = next(iter(found.values())) if len(found) == 1 else None
    return p, f"its graph calls {_listed(found)}"


def _of_script(module: torch.jit.ScriptModule) -> Unreached | None:
    layers = {
        getattr(inner, "original_name", ""): inner
        for inner in module.modules()
        if "drop" in getattr(inner, "original_name", "").lower()
    }
    if not layers:
        return None
    return None, f"TorchScript runs its {_listed(layers)}; replace before scripting"


def _of_source(module: nn.Module) -> Unreached | None:
    cls: type = type(module)
    calls = functions_that_drop(cls)
    if not (calls or drops(module) or drops_among_others(module)):
        return None
    rates = list(_rates(module))
    if rates and max(rates) == 0:
        return None
    p = rates[0] if len(set(rates)) == 1 else None
    if calls:
        return p, f"its forward calls {_listed(calls)}, which no layer holds"
    return p, "it drops in training, and its class has no converter (register_converter)"


def _rates(module: nn.Module) -> Iterator[float]:
    """What is known of the module's drop rates: its own, or those of layers that it reads."""
    own = drop_rates(module)
    yield from (float(getattr(module, name)) for name in own)
    cls: type = type(module)
    for name in mode_use(cls).rates:
        value: Any = getattr(module, name, None)
        if isinstance(value, nn.Module) and rate_of_layer(value) is not None:
            yield rate_of_layer(value) or 0.0
        elif type(value) is int and value in (0, 1):
            yield float(value)


def _listed(names: Any) -> str:
    return ", ".join(dict.fromkeys(str(name) for name in names))
