"""The operators under torch.compile, fake tensors and torch.library's own checks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fused_dropout
from fused_dropout import _ext, _fake
from fused_dropout.functional import dropconnect_linear
from fused_dropout.nn import DropConnectLinear


def operator_calls() -> dict[str, list[tuple]]:
    """Arguments for calls of every operator, on torch's default device."""
    torch.manual_seed(0)
    input, weight, bias, grad = (
        torch.randn(*shape) for shape in ((6, 140), (9, 140), (9,), (6, 9))
    )
    state = fused_dropout.make_rng_state(1, 2)
    bits = _ext.operators().dropconnect_mask_bits(state, 3, 9, 140, 0.3)
    layer = (state, 0.3, 2, True)
    dropout = (0.3, [1], 1.5, 0.25, -1.0)
    logit_p = torch.zeros(1)
    maps = torch.randn(2, 3, 9, 8)
    blocks = ([3, 2], 0.1, False, 2, 1e-6)
    block_mask = _ext.operators().drop_block_mask(maps, state, *blocks)
    return {
        "mask": [(state, 3, 140, 0.3, 0, 16)],
        "packed_mask": [(state, 3, 140, 0.3, 0, 16)],
        "uniform_noise": [(state, [3, 50], torch.float32)],
        "normal_noise": [(state, [], torch.float64)],
        "gaussian_dropout": [(input, state, 0.5)],
        "gaussian_dropout.generator": [(input, None, 0.5)],
        "gaussian_dropout_": [(input.t(), state, 0.5)],
        "gaussian_dropout_.generator": [(input, None, 0.5)],
        "gaussian_noise": [(input, weight[:6] ** 2, state, 0.5)],
        "gaussian_noise.generator": [(input, weight[:6] ** 2, None, 0.5)],
        "gaussian_noise_d_variance": [(input, weight[:6] ** 2, state, 0.5)],
        "concrete_dropout": [(input, logit_p, state, 0.5)],
        "concrete_dropout.generator": [(input.t(), logit_p, None, 0.5)],
        "concrete_dropout_backward": [(weight[:6], input, logit_p, state, 0.5)],
        "dropconnect_mask_bits": [(state, 3, 9, 140, 0.3)],
        "dropconnect_mask_bits.generator": [(weight, None, 3, 0.3)],
        "dropconnect_linear": [
            (input, weight, bias, *layer, None),
            (input, weight, None, *layer, bits),
        ],
        "dropconnect_linear.generator": [
            (input, weight, bias, None, 0.3, 2, True),
            (input, weight, None, torch.Generator(input.device), 0.3, 2, False),
        ],
        "dropconnect_linear_d_input": [(grad, weight, *layer, bits)],
        "dropconnect_linear_d_weight": [(grad, input, *layer, None)],
        "dropconnect_linear_d_both": [(grad, input, weight, *layer, None)],
        "dropconnect_linear_d_bias": [(grad, *layer)],
        "dropout": [(input, None, state, *dropout), (input, input + 1, state, *dropout)],
        "dropout.generator": [(input, None, None, *dropout), (input, input + 1, None, *dropout)],
        "dropout_": [(input, None, state, *dropout), (input, input + 1, state, *dropout)],
        "dropout_.generator": [(input, None, None, *dropout)],
        "drop_block_mask": [(maps, state, *blocks), (maps, state, [3, 2], 0.1, True, 0, 1e-6)],
        "drop_block_mask.generator": [(maps, None, *blocks)],
        "drop_block": [(maps, *block_mask, False), (maps.mT.contiguous().mT, *block_mask, False)],
        "drop_block_": [(maps, *block_mask, False)],
        **epilogue_calls(state),
    }


def epilogue_calls(state: Tensor) -> dict[str, list[tuple]]:
    """The same for bias_act_dropout_add and its gradients."""
    name = "bias_act_dropout_add"
    input, residual, grad = (torch.randn(6, 140) for _ in range(3))
    bias, transposed = torch.randn(140), torch.randn(140, 6).t()
    gelu, plain = (0.3, "gelu", 1.5), (0.3, "none", 1.5)
    forward = [(input, bias, residual), (transposed, None, None)]
    backward = [(grad, input, bias, state, *gelu), (transposed, None, None, state, *plain)]
    return {
        name: [(*operands, state, *gelu) for operands in forward],
        f"{name}.generator": [
            (*forward[0], None, *gelu),
            (*forward[1], torch.Generator(input.device), *plain),
        ],
        f"{name}_d_input": backward,
        f"{name}_d_both": backward,
    }


@pytest.mark.parametrize("name", _fake.FAKES)
def test_opcheck(name: str, place: torch.device) -> None:
    packet, _, overload = name.partition(".")
    operator = getattr(getattr(torch.ops.fused_dropout, packet), overload or "default")
    for arguments in operator_calls()[name]:
        torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


def test_every_operator_has_a_fake_kernel() -> None:
    registered = torch._C._dispatch_get_all_op_names()
    names = {name.split("::")[1] for name in registered if name.startswith("fused_dropout::")}
    assert names == set(_fake.FAKES)


def output_and_gradients(layer: Callable[[Tensor], Tensor], *leaves: Tensor) -> tuple[Tensor, ...]:
    output = layer(leaves[0])
    return (output.detach(), *torch.autograd.grad(output.sum(), leaves))


@pytest.mark.parametrize("storage", ["regenerate", "packed"])
def test_compiles_to_one_graph_with_the_same_numbers(storage: str, place: torch.device) -> None:
    input, weight = torch.randn(6, 140, requires_grad=True), torch.randn(9, 140, requires_grad=True)

    def layer(rows: Tensor) -> Tensor:
        return dropconnect_linear(rows, weight, None, 0.3, seed=4, mask_storage=storage)

    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    results = [output_and_gradients(run, input, weight) for run in (layer, compiled)]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("storage", ["regenerate", "packed"])
def test_compiled_layer_follows_manual_seed(storage: str, place: torch.device) -> None:
    layer = DropConnectLinear(140, 9, p=0.3, mask_storage=storage)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    input = torch.randn(6, 140, requires_grad=True)
    # On the CPU the numbers are those of the layer itself, on CUDA another sequence.
    runs = (compiled, compiled, layer) if place.type == "cpu" else (compiled, compiled)
    results = []
    for run in runs:
        torch.manual_seed(4)
        results.append(output_and_gradients(run, input, layer.weight))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            torch.testing.assert_close(a, b)


def test_compiled_backward_uses_the_forward_s_mask(place: torch.device) -> None:
    """With unit operands, the output counts the kept connections, and so do the gradients."""
    input, weight = torch.ones(6, 140, requires_grad=True), torch.ones(9, 140, requires_grad=True)
    layer = torch.compile(dropconnect_linear, backend="aot_eager", fullgraph=True)
    output = layer(input, weight, None, 0.5)
    d_input, d_weight = torch.autograd.grad(output.sum(), (input, weight))
    assert torch.equal(d_input.sum(1), output.sum(1))
    assert torch.equal(d_weight.sum(1), output.sum(0))


def test_compiled_layer_draws_anew_on_every_call(place: torch.device) -> None:
    compiled = torch.compile(DropConnectLinear(140, 9), backend="aot_eager", fullgraph=True)
    input = torch.randn(6, 140)
    assert not torch.equal(compiled(input), compiled(input))


def test_two_equal_calls_in_one_graph_draw_two_masks(place: torch.device) -> None:
    """torch.compile merges equal calls of operators that it takes for pure."""
    weight = torch.ones(9, 140)

    def twice(rows: Tensor) -> tuple[Tensor, Tensor]:
        return dropconnect_linear(rows, weight), dropconnect_linear(rows, weight)

    first, second = torch.compile(twice, backend="aot_eager", fullgraph=True)(torch.ones(6, 140))
    assert not torch.equal(first, second)


def test_masks_compile_where_torch_s_factories_make_tensors(place: torch.device) -> None:
    draw = torch.compile(fused_dropout.mask, backend="aot_eager", fullgraph=True)
    drawn = draw((3, 140), 0.3, seed=-1, offset=2)
    assert drawn.device == place
    assert torch.equal(drawn, fused_dropout.mask((3, 140), 0.3, seed=-1, offset=2))


def test_meta_tensors_give_shapes() -> None:
    layer = DropConnectLinear(140, 9, device="meta")
    assert layer(torch.empty(2, 6, 140, device="meta")).shape == (2, 6, 9)
