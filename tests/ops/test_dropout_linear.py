"""dropout_linear: a linear layer whose input is dropped, and what it keeps and takes for that."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from support.accuracy import is_accurate, own_and_truth
from support.devices import threads
from support.tensors import DTYPES, layouts, random_tensor, random_tensors, with_gradients
from torch.nn import functional as torchs
from torch.utils.flop_counter import FlopCounterMode

import fused_dropout
from fused_dropout import nn, reference
from fused_dropout._core import extension
from fused_dropout._tools.memory import kept_for_backward, peak_extra_bytes
from fused_dropout.functional import dropout, dropout_linear

# kBlockElements of csrc/cpu/dropout_linear.cpp and csrc/cuda/dropout_linear.cu.
BLOCK = {"cpu": 1 << 20, "cuda": 1 << 22}
# Rows that begin within a group; several blocks of whole groups; blocks that begin within one (of
# rows of 9001 elements); rows that are longer than a block.
SMALL = ((9,), (5, 129), (3, 2, 33))
LARGE = ("whole groups", "parts of groups", "long rows")
OUTS = 5


def large(blocks: str, device: torch.device) -> tuple[int, ...]:
    """An input of several of the device's blocks."""
    block = BLOCK[device.type]
    shapes = {
        "whole groups": (block // 1500, 2049),
        "parts of groups": (2, block // 13600, 9001),
        "long rows": (2, block + 5),
    }
    return shapes[blocks]


def operands_of(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """input, weight, bias and the output's gradient."""
    input, weight, bias, grad = random_tensors(
        shape, (OUTS, shape[-1]), (OUTS,), (*shape[:-1], OUTS), dtype=dtype
    )
    return input, weight / shape[-1] ** 0.5, bias, grad


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((shape, dtype) for shape in SMALL for dtype in DTYPES),
        *((shape, dtype) for shape in LARGE for dtype in (torch.float32, torch.bfloat16)),
    ],
    ids=str,
)
def test_matches_reference(
    shape: tuple[int, ...] | str, dtype: torch.dtype, backend: torch.device
) -> None:
    sizes = large(shape, backend) if isinstance(shape, str) else shape
    operands = operands_of(sizes, dtype)
    ours = with_gradients(dropout_linear, operands, p=0.3, seed=7)
    own, truth = own_and_truth(reference.dropout_linear, operands, p=0.3, seed=7)
    names = ("output", "d_input", "d_weight", "d_bias")
    for name, a, b, t in zip(names, ours, own, truth, strict=True):
        assert is_accurate(a, b, t), name
    assert not ours[1].cpu()[truth[1] == 0].any()


@pytest.mark.parametrize("p", [0.5, 0.1, 0.3])
def test_the_mask_is_dropout_s(p: float, place: torch.device) -> None:
    """By an identity matrix, bit for bit, in every block; and by its transposed, gradients."""
    weight = torch.eye(131)
    input = torch.randn(3, BLOCK[place.type] // 131, 131, requires_grad=True)
    state = fused_dropout.make_rng_state(5, 9)
    output = dropout_linear(input, weight, p=p, rng_state=state)
    assert torch.equal(output, dropout(input, p, rng_state=state))
    grad = torch.randn_like(output)
    ours, theirs = (
        torch.autograd.grad(result, input, grad)[0]
        for result in (output, dropout(input, p, rng_state=state))
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("shape", [(7, 130), (4, 6, 3, 131), (2, 500, 2, 525)])
def test_any_strides(shape: tuple[int, ...], backend: torch.device) -> None:
    """An input is read where it lies, in any order; so are weight and gradient."""
    input, weight, bias, grad = operands_of(shape, torch.float64)
    expected = with_gradients(dropout_linear, (input, weight, bias, grad), p=0.3, seed=1)
    for (name, view), (_, grad_view) in zip(layouts(input), layouts(grad), strict=True):
        found = with_gradients(dropout_linear, (view, weight, bias, grad_view), p=0.3, seed=1)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12, msg=name)
    strided = weight.repeat_interleave(2, 1)[:, ::2]
    found = with_gradients(dropout_linear, (input, strided, bias, grad), p=0.3, seed=1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    leaf = input.clone().requires_grad_()
    (of_sum,) = torch.autograd.grad(dropout_linear(leaf, weight, p=0.3, seed=1).sum(), leaf)
    ones = torch.ones_like(grad)
    assert torch.equal(
        of_sum, with_gradients(dropout_linear, (leaf, weight, ones), p=0.3, seed=1)[1]
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("special", [math.nan, math.inf])
def test_what_is_dropped_is_zero(dtype: torch.dtype, special: float, backend: torch.device) -> None:
    kept = fused_dropout.mask(20 * 130, 0.5, seed=2).view(20, 130)
    input = torch.where(kept, 0.5, special).to(dtype).requires_grad_()
    weight = torch.ones(3, 130, dtype=dtype, requires_grad=True)
    output = dropout_linear(input, weight, p=0.5, seed=2)
    assert torch.equal(output, kept.sum(1, keepdim=True).expand(20, 3).to(dtype))
    (d_weight,) = torch.autograd.grad(output, weight, torch.ones_like(output), retain_graph=True)
    assert torch.equal(d_weight, kept.sum(0).expand(3, 130).to(dtype))
    (d_input,) = torch.autograd.grad(output, input, torch.full_like(output, special))
    assert torch.equal(d_input == 0, ~kept)
    assert not d_input[kept].isfinite().any()


def test_layers_on_one_input_share_it(place: torch.device) -> None:
    """Each keeps the input itself, its weight and 16 bytes, however the input lies in memory."""
    for input in (torch.randn(4, 30, 64), torch.randn(30, 4, 64).transpose(0, 1)):
        leaf = input.requires_grad_()
        weights = [torch.randn(8, 64, requires_grad=True) for _ in range(3)]
        kept = kept_for_backward(lambda: sum(dropout_linear(leaf, w, p=0.1) for w in weights))  # noqa: B023
        addresses = {tensor.data_ptr() for tensor in kept if tensor.dtype.is_floating_point}
        assert addresses == {leaf.data_ptr(), *(weight.data_ptr() for weight in weights)}
        assert sum(t.nbytes for t in kept if not t.dtype.is_floating_point) == 3 * 16
        frozen = kept_for_backward(lambda: dropout_linear(leaf, weights[0].detach(), p=0.1))  # noqa: B023
        assert leaf.data_ptr() not in {tensor.data_ptr() for tensor in frozen}


@pytest.mark.parametrize("autocast", [False, True])
def test_memory_is_a_block(autocast: bool) -> None:
    """Of 48 MiB of input nothing is copied, in forward, nor in backward with d_weight alone."""
    input = torch.randn(3, 4096, 1024)
    weight = torch.randn(4, 1024, requires_grad=True)

    def step() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            output = dropout_linear(input.transpose(0, 1), weight, p=0.3)
        return torch.autograd.grad(output.float().sum(), weight)[0]

    step()
    peak = peak_extra_bytes(step)
    if peak is None:
        pytest.skip("the peak of resident memory cannot be reset here")
    assert peak < 16 << 20


def test_autocast(place: torch.device) -> None:
    """As F.linear of what dropout gives, rounding included; the input is kept as it is."""
    input, weight, bias, _ = operands_of((3, 40, 300), torch.float32)
    leaves = [tensor.requires_grad_() for tensor in (input, weight, bias)]
    with torch.autocast(place.type, torch.bfloat16):
        kept = kept_for_backward(lambda: dropout_linear(*leaves, p=0.3, seed=1))
        ours = dropout_linear(*leaves, p=0.3, seed=1)
        theirs = torchs.linear(dropout(input, 0.3, seed=1), weight, bias)
        double = dropout_linear(*(t.double() for t in leaves), p=0.3, seed=1)
    assert input.data_ptr() in {tensor.data_ptr() for tensor in kept}
    assert double.dtype == torch.float64
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs)
    grad = torch.randn_like(ours)
    for a, b in zip(
        torch.autograd.grad(ours, leaves, grad),
        torch.autograd.grad(theirs, leaves, grad),
        strict=True,
    ):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


def test_autocast_refuses_a_weight_that_it_does_not_cast(place: torch.device) -> None:
    with (
        torch.autocast(place.type, torch.bfloat16),
        pytest.raises(RuntimeError, match="weight must have the dtype of the product"),
    ):
        dropout_linear(torch.randn(2, 3), torch.randn(4, 3, dtype=torch.float64))


def test_derivatives_of_every_order(place: torch.device) -> None:
    operands = [tensor.requires_grad_() for tensor in operands_of((3, 2, 4), torch.float64)[:3]]

    def layer(*tensors: torch.Tensor) -> torch.Tensor:
        return dropout_linear(*tensors, p=0.5, seed=1)

    assert torch.autograd.gradcheck(layer, operands, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(layer, operands, check_fwd_over_rev=True)


def test_sums_of_blocks_do_not_depend_on_threads() -> None:
    """But for what torch's product makes of them."""
    operands = operands_of((700, 2049), torch.float32)
    with threads(1):
        alone = with_gradients(dropout_linear, operands, p=0.3, seed=9)
    with threads(3):
        together = with_gradients(dropout_linear, operands, p=0.3, seed=9)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
    assert torch.equal(alone[1] != 0, together[1] != 0)


@pytest.mark.parametrize("rows", [(), (0,), (2, 0), (3,)])
@pytest.mark.parametrize(("ins", "outs"), [(0, 2), (2, 0), (3, 2), (0, 0)])
def test_empty(rows: tuple[int, ...], ins: int, outs: int, place: torch.device) -> None:
    """As F.linear; and the operators themselves, which a caller may reach."""
    input = torch.randn(*rows, ins, requires_grad=True)
    weight = torch.randn(outs, ins, requires_grad=True)
    bias = torch.randn(outs, requires_grad=True)
    output = dropout_linear(input, weight, bias, p=1.0)
    assert torch.equal(output, bias.expand(*rows, outs))
    grads = torch.autograd.grad(output.sum(), (input, weight, bias))
    assert [grad.shape for grad in grads] == [input.shape, weight.shape, bias.shape]
    if not rows:
        return
    operators = extension.operators()
    settings = (fused_dropout.make_rng_state(1), 0.5, 2.0)
    with torch.no_grad():
        direct = operators.dropout_linear(input, weight, bias, *settings)
        d_input = operators.dropout_linear_d_input(output, weight, *settings)
        d_weight = operators.dropout_linear_d_weight(output, input, *settings)
    assert (direct.shape, d_input.shape, d_weight.shape) == (
        output.shape, input.shape, weight.shape
    )  # fmt: skip
    if ins == 0:
        assert torch.equal(direct, output)
    if outs == 0 or 0 in rows:
        assert not d_input.any()
        assert not d_weight.any()


def test_where_nothing_is_drawn(place: torch.device) -> None:
    input, weight, bias = torch.randn(4, 6), torch.randn(3, 6), torch.randn(3)
    dense = torchs.linear(input, weight, bias)
    state = torch.get_rng_state()
    assert torch.equal(dropout_linear(input, weight, bias, 0.0), dense)
    assert torch.equal(dropout_linear(input, weight, bias, 0.3, False), dense)
    assert torch.equal(dropout_linear(input, weight, bias, 1.0), bias.expand(4, 3))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_rate_of_dropped_products(place: torch.device) -> None:
    """2^20 draws at p = 0.1, within 5 standard deviations: false alarms in 1 of 1.7 million."""
    output = dropout_linear(torch.ones(1024, 1024), torch.ones(1, 1024), p=0.1, seed=1)
    kept = float(output.double().sum()) / 2**20  # times 1 / q, q close to 0.9
    assert abs(kept - 1) < 5 * math.sqrt(0.1 / 0.9 / 2**20)


def test_flops_are_those_of_the_product(place: torch.device) -> None:
    input = torch.randn(3, 40, 30, requires_grad=True)
    weight = torch.randn(8, 30, requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        dropout_linear(input, weight, p=0.1).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 120 * 30 * 8


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"input": torch.randn(4, 7)}, RuntimeError, "input must have shape"),
        ({"input": torch.tensor(1.0)}, RuntimeError, "input must have shape"),
        ({"input": torch.randn(4, 6).int()}, RuntimeError, "input must have a dtype"),
        ({"weight": torch.randn(3, 6, 1)}, RuntimeError, "weight must have shape"),
        ({"weight": torch.randn(3, 6).double()}, RuntimeError, "weight must have the dtype"),
        ({"weight": torch.randn(3, 6).to_sparse()}, RuntimeError, "weight must be a dense"),
        ({"bias": torch.randn(4)}, RuntimeError, "bias must have shape"),
        ({"bias": 1.0}, TypeError, "bias must be a Tensor"),
        ({"p": 1.5}, ValueError, "p, the drop probability, has to be between 0 and 1"),
        ({"seed": 1, "rng_state": torch.zeros(2).long()}, ValueError, "at most one of generator"),
    ],
)
def test_bad_input(change: dict[str, object], error: type[Exception], message: str) -> None:
    good = {"input": torch.randn(4, 6), "weight": torch.randn(3, 6), "bias": torch.randn(3)}
    with pytest.raises(error, match=message):
        dropout_linear(**{**good, **change})


# ---- the module


def test_the_module_is_a_linear_layer(place: torch.device) -> None:
    layer = nn.DropoutLinear(6, 3, p=0.25)
    plain = torch.nn.Linear(6, 3)
    plain.load_state_dict(layer.state_dict())
    layer.load_state_dict(plain.state_dict())
    assert isinstance(layer, torch.nn.Linear)
    assert repr(layer) == "DropoutLinear(in_features=6, out_features=3, bias=True, p=0.25)"
    input = torch.randn(5, 6)
    torch.manual_seed(3)
    output = layer(input)
    torch.manual_seed(3)
    assert torch.equal(output, dropout_linear(input, layer.weight, layer.bias, 0.25))
    assert not torch.equal(output, plain(input))
    output.sum().backward()
    again = copy.deepcopy(layer).eval()
    assert torch.equal(again(input), plain(input))
    assert fused_dropout.mc_dropout(again)  # finds the layer


@pytest.mark.parametrize(
    ("arguments", "error"),
    [({"p": -0.1}, ValueError), ({"p": "0.1"}, TypeError), ({"bias": 1}, TypeError)],
)
def test_the_module_s_bad_arguments(arguments: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error):
        nn.DropoutLinear(6, 3, **arguments)


def test_lora_trains_as_with_dropout(place: torch.device) -> None:
    """The same masks by the same seeds: the adapter of both forms learns the same numbers."""
    input, weight, _, grad = operands_of((40, 64), torch.float32)
    factor = random_tensor((OUTS, OUTS), seed=3)

    def trained(layer: object) -> torch.Tensor:
        adapter = torch.zeros_like(weight).add_(0.1).requires_grad_()
        optimizer = torch.optim.SGD([adapter], 0.1)
        for step in range(20):
            output = torchs.linear(layer(input, adapter, step), factor)
            loss = (output - grad).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return adapter.detach()

    ours = trained(lambda x, a, step: dropout_linear(x, a, p=0.1, seed=step))
    theirs = trained(lambda x, a, step: torchs.linear(dropout(x, 0.1, seed=step), a))
    torch.testing.assert_close(ours, theirs)
