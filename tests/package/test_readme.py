"""README.md: its snippets and the code beside them, which says what they mean, agree in numbers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.documents import README, run_blocks
from torch import Tensor

import fused_dropout
from fused_dropout._core.rng import draw_rng_state

SEED = 3
SETUP, LAYER, NAIVE_LAYER, CONVERSION, LOOP, DROPOUT, EAGER_DROPOUT = range(7)
AT_MOST_LINES = 130


def tensors_of(names: dict[str, Any], *wanted: str) -> list[Tensor]:
    found = [names[name] for name in wanted]
    assert all(isinstance(value, Tensor) for value in found)
    return found


def test_it_is_short() -> None:
    assert README.read_text().count("\n") <= AT_MOST_LINES


def test_the_layer_is_the_naive_code(place: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_blocks(README, SETUP)
    torch.manual_seed(SEED)
    run_blocks(README, LAYER, names=names)
    layer, x, output = names["layer"], names["x"], names["y"]
    assert layer.weight.device == output.device == place
    gradients = torch.autograd.grad(output.square().mean(), layer.parameters())

    torch.manual_seed(SEED)
    fused_dropout.nn.DropConnectLinear(256, 512)  # draws its parameters, as the block's layer did
    seed, offset = draw_rng_state(x).tolist()
    streams = iter((0, 1))

    def same_masks(rates: Tensor) -> Tensor:
        p = 1.0 - rates.flatten()[0].item()
        stream = next(streams)
        mask = fused_dropout.mask(rates.shape, p, seed=seed, offset=offset, stream=stream)
        return mask.to(rates)

    monkeypatch.setattr(torch, "bernoulli", same_masks)
    run_blocks(README, NAIVE_LAYER, names=names)
    assert next(streams, None) is None, "both masks were drawn"
    assert names["y"] is not output
    torch.testing.assert_close(names["y"], output)
    expected = torch.autograd.grad(names["y"].square().mean(), layer.parameters())
    torch.testing.assert_close(gradients, expected)


def test_the_conversion_is_the_loop(place: torch.device) -> None:
    names = run_blocks(README, SETUP, CONVERSION)
    converted = names["model"]
    plain = fused_dropout.to_linear(copy.deepcopy(converted))
    assert not any(isinstance(m, fused_dropout.nn.DropConnectLinear) for m in plain.modules())
    names["model"] = plain
    run_blocks(README, LOOP, names=names)
    assert repr(plain) == repr(converted) and repr(plain).count("DropConnectLinear") == 2

    outputs = []
    for model in (converted, plain):
        torch.manual_seed(SEED)
        outputs.append(model(names["x"]))
    assert torch.equal(*outputs)


def test_dropout_is_the_eager_code(place: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run_blocks(README, SETUP, DROPOUT)
    ours = tensors_of(names, "dropped", "y")
    seeds = iter((1, 2))  # those of the block

    def same_masks(input: Tensor, p: float) -> Tensor:
        return fused_dropout.reference.dropout(input, p, seed=next(seeds))

    monkeypatch.setattr(torch.nn.functional, "dropout", same_masks)
    run_blocks(README, EAGER_DROPOUT, names=names)
    assert next(seeds, None) is None, "both seeds were used"
    eager = tensors_of(names, "dropped", "y")
    assert eager[0] is not ours[0] and eager[1] is not ours[1]
    # The keep rate is 0.9 to 16 binary digits, and the same on both sides.
    torch.testing.assert_close(ours, eager)
