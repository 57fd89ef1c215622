"""DropBlock: bad input, its modules, torch.compile and torch.export."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from support.drop_block import FUNCTIONS
from torch import Tensor

import fused_dropout
from fused_dropout._core import extension
from fused_dropout.functional import drop_block2d
from fused_dropout.nn import DropBlock1d, DropBlock2d, DropBlock3d

MODULES = {3: DropBlock1d, 4: DropBlock2d, 5: DropBlock3d}

# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((1.5, 3), {}, ValueError, "has to be between 0 and 1, but got 1.5"),
        ((math.nan, 3), {}, ValueError, "has to be between 0 and 1"),
        (("0.1", 3), {}, TypeError, "p must be a float"),
        ((0.1, 0), {}, ValueError, "block_size must be at least 1, got 0"),
        ((0.1, (3, -1)), {}, ValueError, "block_size must be at least 1"),
        ((0.1, (3, 3, 3)), {}, ValueError, "block_size must be an int or 2 of them"),
        ((0.1, 3.0), {}, TypeError, "block_size must be an int, got float"),
        ((0.1, 3), {"eps": -1.0}, ValueError, "eps must be finite, at least 0; got -1"),
        ((0.1, 3), {"eps": math.nan}, ValueError, "eps must be finite, at least 0; got nan"),
        ((0.1, 3), {"eps": 10**400}, ValueError, "eps must be finite, at least 0; got an int of"),
        ((0.1, 3), {"eps": "x"}, TypeError, "eps must be a float"),
        ((0.1, 3), {"gamma_scale": -1.0}, ValueError, "gamma_scale must be finite, at least 0"),
        ((0.1, 3), {"gamma_scale": math.inf}, ValueError, "gamma_scale must be finite"),
        ((0.1, 3), {"gamma_scale": True}, TypeError, "gamma_scale must be a float, got bool"),
        ((0.1, 3), {"with_noise": 1}, TypeError, "with_noise must be a bool, got 1"),
        ((0.1, 3), {"share_channels": "x"}, TypeError, "share_channels must be a bool, got 'x'"),
        ((0.1, 3), {"inplace": 1}, TypeError, "inplace must be a bool, got 1"),
        ((0.1, 3), {"normalize": "all"}, ValueError, "normalize must be one of 'batch'"),
        ((0.1, 3), {"gamma": 0.1}, ValueError, "gamma must be one of 'paper', 'exact'"),
    ],
)
def test_bad_arguments(
    arguments: tuple, options: dict, error: type[Exception], words: str, place: torch.device
) -> None:
    with pytest.raises(error, match=words):
        drop_block2d(torch.randn(2, 3, 8, 8), *arguments, **options)
    with pytest.raises(error, match=words):
        DropBlock2d(*arguments, **options)


def test_bad_inputs(place: torch.device) -> None:
    for dims, function in FUNCTIONS.items():
        with pytest.raises(ValueError, match=f"input should be {dims} dimensional. Got 2"):
            function(torch.randn(3, 8), 0.1, 3)
    with pytest.raises(RuntimeError, match="must have a dtype of float32"):
        drop_block2d(torch.ones(2, 3, 8, 8, dtype=torch.int64), 0.1, 3)
    with pytest.raises(TypeError, match="input must be a Tensor"):
        drop_block2d([1.0], 0.1, 3)
    with pytest.raises(ValueError, match="at most one of generator, seed and rng_state"):
        drop_block2d(
            torch.randn(2, 3, 8, 8), 0.1, 3, seed=1, rng_state=fused_dropout.make_rng_state(1)
        )
    expanded = torch.randn(2, 3, 8, 1).expand(2, 3, 8, 8)
    with pytest.raises(RuntimeError, match="single memory location"):
        drop_block2d(expanded, 0.1, 3, inplace=True)


def test_direct_calls_of_the_operators_are_checked(place: torch.device) -> None:
    ops = extension.operators()
    input = torch.randn(2, 3, 8, 8)
    state = fused_dropout.make_rng_state(1)
    good = {"block": [3, 3], "gamma": 0.1, "share_channels": False, "scales": 1, "eps": 1e-6}
    bits, scale = ops.drop_block_mask(input, state, **good)
    for wrong in (
        {"block": [3]},
        {"block": [9, 3]},
        {"block": [0, 3]},
        {"gamma": 1.5},
        {"scales": 3},
        {"eps": -1.0},
    ):
        with pytest.raises((RuntimeError, ValueError)):
            ops.drop_block_mask(input, state, **(good | wrong))
    for arguments in (
        (input, bits[1:], scale, False),
        (input, bits, scale, True),
        (input, bits.float(), scale, False),
        (input, bits, scale.float(), False),
        (input, bits, scale.expand(3), False),
        (input.int(), bits, scale, False),
        (input[0, 0, 0], bits, scale, False),
    ):
        with pytest.raises((RuntimeError, TypeError)):
            ops.drop_block(*arguments)
        with pytest.raises((RuntimeError, TypeError)):
            ops.drop_block_(*arguments)


# ---- modules ------------------------------------------------------------------------------------


def test_repr_is_torchvision_s_with_our_name() -> None:
    assert repr(DropBlock2d(0.1, 7)) == (
        "fused_dropout.nn.DropBlock2d(p=0.1, block_size=7, inplace=False)"
    )
    assert repr(DropBlock3d(p=0.2, block_size=3, inplace=True)) == (
        "fused_dropout.nn.DropBlock3d(p=0.2, block_size=3, inplace=True)"
    )
    shown = repr(DropBlock1d(0.1, 7, normalize="sample", share_channels=True, gamma="exact"))
    assert shown.startswith("fused_dropout.nn.DropBlock1d(p=0.1, block_size=7, inplace=False, ")
    assert "inplace=False, normalize='sample', share_channels" in shown
    assert shown.endswith("share_channels=True, gamma='exact')")
    shown = repr(DropBlock1d(0.1, 7, gamma_scale=0.5, with_noise=True))
    assert shown.endswith("inplace=False, gamma_scale=0.5, with_noise=True)")


@pytest.mark.parametrize("dims", [3, 4, 5])
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_module_is_the_function(dims: int, clone: Any, place: torch.device) -> None:
    layer = clone(MODULES[dims](0.3, 3, False, 1e-3, normalize="sample", gamma="exact"))
    input = torch.randn(2, 3, *[8] * (dims - 2))
    torch.manual_seed(1)
    output = layer(input)
    torch.manual_seed(1)
    expected = FUNCTIONS[dims](input, 0.3, 3, eps=1e-3, normalize="sample", gamma="exact")
    assert torch.equal(output, expected)
    assert layer.eval()(input) is input
    assert not list(layer.state_dict())


# ---- torch.compile ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "inplace"),
    [
        ({}, False),
        ({}, True),
        ({"gamma": "exact", "normalize": "sample"}, False),
        ({"gamma_scale": 1.5, "with_noise": True}, True),
        ({"gamma": "exact", "gamma_scale": 0.5}, False),
    ],
    ids=str,
)
def test_compiles_to_one_graph(options: dict, inplace: bool, place: torch.device) -> None:
    def function(x: Tensor) -> Tensor:
        return drop_block2d(x * 1, 0.3, 3, inplace, seed=4, **options)

    torch.compiler.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    for size in (9, 12, 15):  # from the second size on, torch compiles for any
        input = torch.randn(2, 3, size, 10, requires_grad=True)
        results = []
        for run in (function, compiled):
            output = run(input)
            results.append((output, *torch.autograd.grad(output.sum(), input)))
        for ours, expected in zip(*results, strict=True):
            assert torch.equal(ours, expected)
        with torch.no_grad():
            assert torch.equal(compiled(input), function(input))


@pytest.mark.parametrize("gamma", ["paper", "exact"])
def test_exports(gamma: str, place: torch.device) -> None:
    layer, input = DropBlock2d(0.3, 3, gamma=gamma), torch.randn(2, 3, 9, 10)
    exported = torch.export.export(layer, (input,)).module()
    results = []
    for run in (layer, exported):
        torch.manual_seed(5)
        results.append(run(input))
    assert torch.equal(*results)
    assert not torch.equal(results[0], input)
