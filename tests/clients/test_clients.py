"""fused_dropout.replace on models of timm, torchvision, transformers and peft, which must be here.

`make test-clients` installs them and runs this folder; `make test` does not collect it.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clients.models import FACTORIES, TRAINED, Client
from fused_dropout import nn as ours
from fused_dropout import replace, replacement_report, restore
from fused_dropout._models.replace.timm_layers import TimmDropBlock2d
from fused_dropout._models.replace.transformers_layers import DropConnectConv1D
from fused_dropout._tools.convert_check.compare import compare

# What a layer of this class must become, and where its rate is.
EXPECTED: dict[str, tuple[type[nn.Module], str]] = {
    "Dropout": (ours.Dropout, "p"),
    "StochasticDepth": (ours.StochasticDepth, "p"),
    "DropPath": (ours.DropPath, "drop_prob"),
    "DropBlock2d": (TimmDropBlock2d, "drop_prob"),
}
STEPS, SEEDS = 20, 6


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These models are too small for more, whose threads wait long where other work runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


each_client = pytest.mark.parametrize("name", FACTORIES)


def sites_of(model: nn.Module) -> dict[str, tuple[str, float]]:
    """By name, the class and the rate of every layer that is to be replaced."""
    return {
        name: (type(layer).__name__, getattr(layer, EXPECTED[type(layer).__name__][1]))
        for name, layer in model.named_modules()
        if type(layer).__name__ in EXPECTED
    }


@each_client
def test_every_site(name: str) -> None:
    """Types, rates, hooks, flags, devices and dtypes, site by site; a hook keeps a layer alone."""
    client: Client = FACTORIES[name]()
    model = client.model
    before = sites_of(model)
    assert len(before) == client.replaced
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    places = {key: (tensor.device, tensor.dtype) for key, tensor in tensors.items()}
    calls: Counter[str] = Counter()
    for site in before:
        layer = model.get_submodule(site)
        layer.register_forward_hook(lambda *_, site=site: calls.update([site]))
        layer.mark = site
    layers = {site: model.get_submodule(site) for site in before}
    next(iter(layers.values())).eval()
    flags = {site: layer.training for site, layer in layers.items()}
    model(**client.inputs)
    calls_before = dict(calls)
    calls.clear()

    assert replace(model) is model

    for site, (cls, rate) in before.items():
        layer: Any = model.get_submodule(site)
        assert layer is layers[site] and type(layer) is EXPECTED[cls][0], site
        assert getattr(layer, EXPECTED[cls][1]) == rate, site
        assert layer.mark == site and layer.training == flags[site]
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert all(after[key] is tensors[key] for key in tensors) and len(after) == len(tensors)
    assert {key: (tensor.device, tensor.dtype) for key, tensor in after.items()} == places
    model(**client.inputs)
    assert dict(calls) == calls_before
    report = replacement_report(model)
    assert {record.name for record in report.replaced} == before.keys()
    assert {left.kind.rpartition(".")[2] for left in report.left} == client.left
    assert all(left.p is not None and left.p > 0 for left in report.left)


@each_client
def test_rates_outputs_and_what_is_left(name: str) -> None:
    """Drop rates within 5 sigma, evaluation bit-equal, restored, nothing random unexplained."""
    client: Client = FACTORIES[name]()
    state = {key: value.clone() for key, value in client.model.state_dict().items()}
    torch.manual_seed(11)
    outcome = compare(client.model, ((), client.inputs), None)
    assert outcome.problems == []
    assert [site for site in outcome.sites if site.problem] == []
    assert all(site.after is not None for site in outcome.sites)
    assert sum(site.before is not None for site in outcome.sites) == client.replaced
    assert len(outcome.sites) == client.replaced + client.joined
    assert outcome.unexplained == {}
    restored = client.model.state_dict()
    assert list(restored) == list(state)
    assert all(torch.equal(restored[key], state[key]) for key in state)


def mean_losses(name: str, convert: Callable[[nn.Module], Any]) -> Tensor:
    """Of each seed the mean loss of the last ten steps."""
    client: Client = TRAINED[name]()
    convert(client.model)
    start = {key: value.clone() for key, value in client.model.state_dict().items()}
    found = []
    for seed in range(SEEDS):
        client.model.load_state_dict(start)
        optimizer = torch.optim.AdamW(client.model.parameters(), 1e-3)
        torch.manual_seed(seed)
        losses = []
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = client.loss(client.model(**client.inputs))
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        found.append(sum(losses[-10:]) / 10)
    return torch.tensor(found, dtype=torch.float64)


@each_client
def test_training_goes_alike(name: str) -> None:
    """Welch's t below 7.5: with 6 seeds a correct conversion fails with a probability of 2e-5."""
    before = mean_losses(name, lambda model: None)
    after = mean_losses(name, replace)
    assert torch.isfinite(after).all()
    error = math.sqrt(float(before.var() + after.var()) / SEEDS)
    assert abs(float(before.mean() - after.mean())) < 7.5 * error
    assert float(after.mean()) < 1.5 * float(before.mean())


@each_client
def test_restore_after_training(name: str) -> None:
    client: Client = FACTORIES[name]()
    model = client.model
    before, names = sites_of(model), list(model.state_dict())
    replace(model)
    client.loss(model(**client.inputs)).backward()
    torch.optim.SGD(model.parameters(), 1e-3).step()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        expected = leaves(model.eval()(**client.inputs))
        restore(model)
        found = leaves(model(**client.inputs))
    assert sites_of(model) == before and list(model.state_dict()) == names
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert len(found) == len(expected) > 0
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def leaves(output: Any) -> list[Tensor]:
    found = torch.utils._pytree.tree_leaves(output)
    return [leaf for leaf in found if isinstance(leaf, Tensor)]


def test_dropconnect_in_the_linear_layers_of_a_gpt2() -> None:
    client: Client = FACTORIES["gpt2"]()
    with pytest.raises(ValueError, match=r"linear names 'lm_head'.*tied"):
        replace(client.model, linear={"*.c_fc": 0.2, "lm_head": 0.5})
    torch.manual_seed(2)
    outcome = compare(client.model, ((), client.inputs), {"*.c_attn": 0.3, "*.c_fc": 0.2})
    assert outcome.passed and len(outcome.sites) == client.replaced + 4
    replace(client.model, linear={"*.c_attn": 0.3})
    layer = client.model.get_submodule("transformer.h.0.attn.c_attn")
    assert type(layer) is DropConnectConv1D
    client.loss(client.model(**client.inputs)).backward()
    assert layer.weight.grad is not None and tuple(layer.weight.shape) == (32, 96)


def test_no_package_of_a_client_is_imported() -> None:
    code = (
        "import sys, torch, fused_dropout\n"
        "model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())\n"
        "print(fused_dropout.replacement_report(fused_dropout.replace(model, linear=0.5)))\n"
        "print({'timm', 'torchvision', 'transformers', 'peft'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"
