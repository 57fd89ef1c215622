"""nn.WeightDrop: mistakes are found before anything changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from fused_dropout.nn import WeightDrop


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Embedding(5, 4), nn.Linear(4, 5)
        self.decoder.weight = self.encoder.weight


class Integers(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)


def compiled_linear() -> Any:
    linear = nn.Linear(2, 3)
    linear.forward = linear.forward  # type: ignore[method-assign]  # as accelerate's hooks do
    return linear


MISTAKES: dict[str, tuple[Callable[[], Any], tuple[Any, ...], type[Exception], str]] = {
    "no module": (lambda: 3, ("weight",), TypeError, "module must be a torch.nn.Module, got int"),
    "unknown": (lambda: nn.GRU(2, 3), ("w_hh",), ValueError,
                "parameters of the GRU, got 'w_hh'; it has weight_ih_l0, weight_hh_l0, bias_ih_l0"),
    "nothing": (nn.ReLU, ("weight",), ValueError, "it has none"),
    "one unknown": (lambda: nn.Linear(2, 3), (["weight", "x*"],), ValueError, "got 'x\\*'"),
    "no names": (lambda: nn.Linear(2, 3), ([],), ValueError, "names must name at least one"),
    "names": (lambda: nn.Linear(2, 3), (3,), TypeError, "names must be a str.*got 3"),
    "twice": (lambda: nn.Linear(2, 3), (["weight", "w*"],), ValueError, "got weight twice"),
    "rate": (lambda: nn.Linear(2, 3), ("weight", 1.5), ValueError, "but got 1.5"),
    "one rate": (lambda: nn.Linear(2, 3), (["weight", "bias"], [0.5, -1]), ValueError,
                 r"p\[1\], the drop probability.*got -1"),
    "rates": (lambda: nn.Linear(2, 3), (["weight", "bias"], [0.5]), ValueError,
              "one for each of 2 names, got 1"),
    "rate's type": (lambda: nn.Linear(2, 3), ("weight", "0.5"), TypeError, "p must be a float"),
    "mode": (lambda: nn.Linear(2, 3), ("weight", 0.5, "unit"), ValueError, "mode must be one of"),
    "columns": (lambda: nn.Linear(2, 3), ("bias", 0.5, "column"), ValueError,
                r"bias must have at least two dimensions.*got \[3\]"),
    "scalar": (lambda: Integers(torch.tensor(1.0)), ("weight",), ValueError, "one dimension"),
    "again": (lambda: WeightDrop(nn.Linear(2, 3), "weight"), ("bias",), ValueError,
              "already: this Linear drops weight"),
    "inside": (lambda: nn.Sequential(WeightDrop(nn.Linear(2, 3), "weight")), ("0.*",), ValueError,
               "0.weight is masked already, by the Linear 0"),
    "tied": (Tied, ("decoder.weight",), ValueError, "decoder.weight is tied: it is encoder.weight"),
    "tied module": (lambda: nn.Sequential(*[nn.Linear(2, 2)] * 2), ("0.weight",), ValueError,
                    "0.weight is tied: it is 1.weight too"),
    "parametrized": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)), ("weight",),
                     ValueError, "which a parametrization computes"),
    "original": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)),
                 ("parametrizations.weight.original1",), ValueError, "a weight is computed from"),
    "old norm": (lambda: nn.utils.spectral_norm(nn.Linear(2, 3)), ("weight_orig",), ValueError,
                 "a weight is computed from"),
    "pruned": (lambda: prune.l1_unstructured(nn.Linear(2, 3), "weight", 2),
               ("weight_orig",), ValueError, "a weight is computed from"),
    "lazy": (lambda: nn.LazyLinear(3), ("weight",), ValueError, "not initialised yet"),
    "integers": (lambda: Integers(torch.ones(2, 3).char()), ("weight",), RuntimeError, "int8"),
    "sparse": (lambda: Integers(torch.ones(2, 3).to_sparse()), ("weight",), RuntimeError, "dense"),
    "quantised": (lambda: Integers(torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0,
                                                             torch.qint8)),
                  ("weight",), NotImplementedError, "qint8"),
    "scripted": (lambda: torch.jit.script(nn.Linear(2, 3)), ("weight",), ValueError, "torch.jit"),
    "traced": (lambda: torch.fx.symbolic_trace(nn.Linear(2, 3)), ("weight",), ValueError, "fx"),
    "compiled": (lambda: torch.compile(nn.Linear(2, 3)), ("_orig_mod.weight",), ValueError,
                 "torch.compile"),
    "own forward": (compiled_linear, ("weight",), ValueError, "has one of its own"),
    "out_proj": (lambda: nn.MultiheadAttention(4, 2).out_proj, ("weight",), ValueError,
                 "'out_proj.weight'"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.filterwarnings("ignore")
def test_mistakes_are_found_before_anything_changes(mistake: str) -> None:
    make, arguments, error, message = MISTAKES[mistake]
    module = make()
    before = (type(module), dict(getattr(module, "__dict__", {})))
    with pytest.raises(error, match=message):
        WeightDrop(module, *arguments)
    assert (type(module), dict(getattr(module, "__dict__", {}))) == before


def test_mistakes_that_come_later() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    outer: Any = WeightDrop(model, "0.weight", 0.5)
    WeightDrop(model[0], "weight", 0.5)
    with pytest.raises(RuntimeError, match="weight of the Linear would be masked twice"):
        outer(torch.ones(2, 4))
    layer: Any = WeightDrop(nn.Linear(4, 4), "weight", 0.5)
    with pytest.raises(TypeError, match="a Linear with WeightDrop is made by WeightDrop on"):
        type(layer)(4, 4)
    nn.utils.parametrize.register_parametrization(layer, "bias", nn.Identity())
    assert not torch.equal(layer(torch.ones(2, 4)), layer(torch.ones(2, 4)))
    with pytest.raises(ValueError, match="made a ParametrizedLinear after"):
        WeightDrop.remove(layer)
