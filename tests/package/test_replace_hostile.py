"""replace on models that are not what one thinks of first."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.fx
from torch import Tensor, nn

from fused_dropout import nn as ours
from fused_dropout import replace, replacement_report, restore


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.drop(x)
        return output


def draws_as(model: Any, other: Any, x: Tensor) -> bool:
    """Whether both give the same numbers from the same seed."""
    torch.manual_seed(3)
    one = model(x)
    torch.manual_seed(3)
    return torch.equal(one, other(x))


def test_a_module_that_is_its_own_grandchild() -> None:
    model: Any = Holder()
    model.inside = nn.Sequential(nn.Sequential())
    model.inside[0].add_module("up", model)
    replace(model, linear={})
    assert type(model.drop) is ours.Dropout
    other = copy.deepcopy(model)
    restore(other)
    assert type(other.drop) is nn.Dropout and type(model.drop) is ours.Dropout


@dataclasses.dataclass(frozen=True)
class Frozen(nn.Module):
    p: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "__dict__", {**vars(nn.Module()), **vars(self)})
        self._modules["drop"] = nn.Dropout(self.p)


@dataclasses.dataclass
class Unhashable(nn.Module):
    p: float

    def __post_init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(self.p)


@pytest.mark.parametrize("cls", [Frozen, Unhashable])
def test_modules_that_compare_by_their_fields(cls: Any) -> None:
    """Equal ones are not the same one."""
    model = nn.Sequential()
    model._modules.update(a=cls(0.1), b=cls(0.1))
    replace(model)
    layers = [vars(part)["_modules"]["drop"] for part in model._modules.values()]
    assert [type(layer) for layer in layers] == [ours.Dropout] * 2
    restore(model)
    assert [type(layer) for layer in layers] == [nn.Dropout] * 2


class Closed(Holder):
    def __setattr__(self, name: str, value: Any) -> None:
        if "drop" in vars(self).get("_modules", {}):
            raise AttributeError("closed")
        super().__setattr__(name, value)


def test_an_overridden_setattr_is_not_asked() -> None:
    model = Closed()
    replace(model)
    assert type(model.drop) is ours.Dropout
    restore(model)
    assert type(model.drop) is nn.Dropout


def test_a_compiled_model_compiles_again() -> None:
    x = torch.ones(4, 8)
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
    compiled: Any = torch.compile(model, backend="eager")
    compiled(x)
    assert replace(compiled) is compiled
    assert replacement_report(compiled).replaced[0].name == "_orig_mod.1"
    assert type(model[1]) is ours.Dropout and draws_as(compiled, model, x)
    restore(compiled)
    assert type(model[1]) is nn.Dropout and draws_as(compiled, model, x)
    model[1].compile(backend="eager")
    model(x)
    replace(model)
    assert draws_as(model, nn.Sequential(model[0], ours.Dropout(0.5)), x)


class Traced(Holder):
    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.dropout(super().forward(x), 0.25, training=True)
        return nn.functional.dropout(x, 0.75, training=False)


def test_a_graph_module() -> None:
    graph = torch.fx.symbolic_trace(Traced())
    replace(graph)
    (left,) = replacement_report(graph).left
    assert left.p == 0.25 and "its graph calls dropout" in left.reason
    assert type(graph.drop) is ours.Dropout
    other: Any = copy.deepcopy(graph)
    assert type(other.drop) is ours.Dropout
    restore(other)
    assert type(other.drop) is nn.Dropout


def test_an_exported_program() -> None:
    class Functional(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x, 0.25, self.training)

    exported = torch.export.export(Functional(), (torch.ones(2, 3),)).module()
    replace(exported)
    (left,) = replacement_report(exported).left
    assert "its graph calls" in left.reason and "dropout" in left.reason


def test_torchscript_is_left_and_said() -> None:
    with pytest.warns(DeprecationWarning):
        script = torch.jit.script(nn.Sequential(nn.Dropout(0.5)))
        traced = torch.jit.trace(nn.Sequential(nn.Dropout(0.5)).eval(), torch.ones(2))
    model = nn.Sequential(script, nn.Dropout(0.1), traced)
    replace(model)
    report = replacement_report(model)
    assert [each.name for each in report.replaced] == ["1"]
    assert [each.name for each in report.left] == ["0", "2"]
    assert all("replace before scripting" in each.reason for each in report.left)
    model[1].p = 1.5
    restore(model)
    with pytest.raises(ValueError, match="1: p, the drop probability"):
        replace(model)
    assert model[0](torch.ones(2)).shape == (2,)
    replace(script)
    restore(script)


def test_meta_tensors_and_lazy_layers() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    replace(model, linear=0.5)
    assert type(model[0]) is ours.DropConnectLinear and model[0].weight.is_meta
    assert model(torch.ones(2, 3, device="meta")).shape == (2, 3)
    lazy = nn.Sequential(nn.LazyLinear(3), nn.Dropout())
    replace(lazy, linear=0.5)
    assert "may mean more" in replacement_report(lazy).left[0].reason
    assert lazy(torch.ones(2, 5)).shape == (2, 3) and type(lazy[1]) is ours.Dropout


def test_data_parallel_wrappers(tmp_path: Path) -> None:
    plain: Any = nn.DataParallel(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5)))
    replace(plain)
    assert type(plain.module[1]) is ours.Dropout
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/f", rank=0, world_size=1)
    try:
        inner = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5))
        model: Any = nn.parallel.DistributedDataParallel(inner)
        replace(model, linear=0.3)
        model(torch.ones(4, 8)).sum().backward()
        assert inner[0].weight.grad is not None
        assert [type(layer) for layer in inner] == [ours.DropConnectLinear, ours.Dropout]
        restore(model)
        assert [type(layer) for layer in inner] == [nn.Linear, nn.Dropout]
    finally:
        dist.destroy_process_group()


def test_a_converted_model_in_torch_s_tools(place: torch.device) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2))
    x = torch.randn(3, 4)
    replace(model, linear={"2": 0.5})
    exported = torch.export.export(model, (x,)).module()
    assert exported(x).shape == (3, 2)
    assert torch.fx.symbolic_trace(model)(x).shape == (3, 2)
    mapped = torch.func.vmap(model, randomness="different")(x.expand(5, 3, 4))
    assert mapped.shape == (5, 3, 2) and not torch.equal(mapped[0], mapped[1])
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert half(x.t().to(torch.bfloat16).t()).dtype == torch.bfloat16
    with torch.autocast(x.device.type, torch.bfloat16):
        assert torch.isfinite(model(x)).all()
