"""The operators under torch.compile, fake tensors and torch.library's own checks."""

from __future__ import annotations

import pytest
import torch

import fused_dropout
from fused_dropout import _ext
from fused_dropout.nn import DropConnectLinear

STATE = fused_dropout.make_rng_state(1, 2)
INPUT, WEIGHT, BIAS, GRAD = (torch.randn(*shape) for shape in ((6, 140), (9, 140), (9,), (6, 9)))
LAYER = (STATE, 0.3, 2, True)


def operator_calls() -> list[tuple[str, tuple]]:
    ops = _ext.operators()
    bits = ops.dropconnect_mask_bits(STATE, 3, 9, 140, 0.3)
    return [
        ("mask", (STATE, 3, 140, 0.3, 0, 16)),
        ("packed_mask", (STATE, 3, 140, 0.3, 0, 16)),
        ("dropconnect_mask_bits", (STATE, 3, 9, 140, 0.3)),
        ("dropconnect_linear", (INPUT, WEIGHT, BIAS, *LAYER, None)),
        ("dropconnect_linear", (INPUT, WEIGHT, None, *LAYER, bits)),
        ("dropconnect_linear_d_input", (GRAD, WEIGHT, *LAYER, bits)),
        ("dropconnect_linear_d_weight", (GRAD, INPUT, *LAYER, None)),
        ("dropconnect_linear_d_both", (GRAD, INPUT, WEIGHT, *LAYER, None)),
        ("dropconnect_linear_d_bias", (GRAD, *LAYER)),
    ]


@pytest.mark.parametrize(("name", "arguments"), operator_calls())
def test_opcheck(name: str, arguments: tuple) -> None:
    operator = getattr(torch.ops.fused_dropout, name).default
    torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


def test_every_operator_has_a_fake_kernel() -> None:
    from fused_dropout import _fake

    called = {name for name, _ in operator_calls()}
    assert called == set(_fake._FAKES)


@pytest.mark.parametrize("storage", ["regenerate", "packed"])
def test_compiles_to_one_graph_with_the_same_numbers(storage: str) -> None:
    layer = DropConnectLinear(140, 9, p=0.3, mask_storage=storage)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    results = []
    for run in (layer, compiled):
        input = INPUT.clone().requires_grad_()
        torch.manual_seed(4)
        output = run(input)
        results.append((output.detach(), *torch.autograd.grad(output.sum(), [input, layer.weight])))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_compiled_layer_draws_anew_on_every_call() -> None:
    compiled = torch.compile(DropConnectLinear(140, 9), backend="aot_eager", fullgraph=True)
    assert not torch.equal(compiled(INPUT), compiled(INPUT))


def test_meta_tensors_give_shapes() -> None:
    layer = DropConnectLinear(140, 9, device="meta")
    assert layer(torch.empty(2, 6, 140, device="meta")).shape == (2, 6, 9)
