"""DropConnect's convolutions: their masks, bit for bit, and what only they have."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from support.dropconnect import masks_from
from torch import Tensor

import fused_dropout
from fused_dropout import functional as F
from fused_dropout import reference
from fused_dropout._core import extension
from fused_dropout._ops import _convolutions as convolutions

SEED = -5
CONVOLUTIONS = {1: F.dropconnect_conv1d, 2: F.dropconnect_conv2d, 3: F.dropconnect_conv3d}
DENSE = {
    1: torch.nn.functional.conv1d,
    2: torch.nn.functional.conv2d,
    3: torch.nn.functional.conv3d,
}

# groups of channels, whether patches are multiplied
WAYS = {"groups": (1, False), "patches": (1, True), "several groups": (3, False)}
# Of masked weights or patches at a time: one mask, some of them, all.
PARTS = (1, 500, 1 << 22)


@pytest.fixture(params=WAYS, ids=str)
def groups(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Has the convolutions computed in each way that there is, on weights of so many groups."""
    count, patches = WAYS[request.param]
    monkeypatch.setattr(convolutions.Problem, "prefers_patches", lambda *_: patches)
    return count


@pytest.fixture(params=PARTS, ids=str)
def parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PART_ELEMENTS", "PART_ELEMENTS_OF_GPU"):
        monkeypatch.setattr(convolutions, name, request.param)


def powers(outs: int, ins: int, kernel: Sequence[int]) -> Tensor:
    """A weight whose sums say which of its elements are in them."""
    count = ins * math.prod(kernel)
    return (
        (2.0 ** torch.arange(count, dtype=torch.float64))
        .view(ins, *kernel)
        .repeat(outs, *[1] * (1 + len(kernel)))
    )


def sums_of_kept(masks: int, outs: int, columns: int, p: float) -> Tensor:
    """What output channels [masks, outs] are for an input of ones, by the mask contract."""
    kept = fused_dropout.mask((masks * outs, columns), p, seed=SEED)
    sums = kept.double() @ 2.0 ** torch.arange(columns, dtype=torch.float64)
    return sums.view(masks, outs)


@pytest.mark.parametrize("dims", CONVOLUTIONS)
@pytest.mark.parametrize("p", [0.5, 0.3])
def test_masks_are_those_of_the_contract(
    dims: int, p: float, groups: int, parts: None, place: torch.device
) -> None:
    """Every element of every mask: sums of different powers of two are exact."""
    kernel = (3, 2, 1)[:dims]
    weight = powers(2 * groups, 4, kernel)
    input = torch.ones(5, 4 * groups, *[4] * dims, dtype=torch.float64)
    output = CONVOLUTIONS[dims](input, weight, p=p, groups=groups, seed=SEED, convention="paper")
    expected = sums_of_kept(5, 2 * groups, 4 * math.prod(kernel), p)
    assert output.shape[2:] == DENSE[dims](input, weight, groups=groups).shape[2:]
    assert torch.equal(output, expected.view(5, -1, *[1] * dims).expand(output.shape))


@pytest.mark.parametrize(
    ("mask", "which"), [(2, [0, 0, 1, 1, 2]), (7, [0] * 5), ("batch", [0] * 5)]
)
def test_examples_that_share_masks(
    mask: Any, which: list[int], groups: int, parts: None, place: torch.device
) -> None:
    weight = powers(3, 4, (2, 2))
    input = torch.ones(5, 4 * groups, 3, 3, dtype=torch.float64)
    output = F.dropconnect_conv2d(
        input, weight, groups=groups, mask=mask, seed=SEED, convention="paper"
    )
    expected = sums_of_kept(3, 3, 16, 0.5)[which]
    assert torch.equal(output, expected[..., None, None].expand(output.shape))


@pytest.mark.parametrize("mask", ["example", 2, "batch"])
def test_biases_have_masks_of_their_own(
    mask: Any, groups: int, parts: None, place: torch.device
) -> None:
    weight, input = torch.zeros(6, 2, 1), torch.ones(5, 2 * groups, 3)
    bias = torch.arange(1.0, 7.0)
    output = F.dropconnect_conv1d(
        input, weight, bias, groups=groups, mask=mask, seed=SEED, convention="paper"
    )
    rows = F.dropconnect_linear(
        torch.zeros(5, 1), torch.zeros(6, 1), bias, seed=SEED, convention="paper",
        mask={"example": "row"}.get(mask, mask),
    )  # fmt: skip
    assert len(set(rows.flatten().tolist())) >= 3  # zeros and kept ones
    assert torch.equal(output, rows[..., None].expand(output.shape))


@pytest.mark.parametrize("size", [(1, 1), (5, 6)], ids=str)
def test_a_kernel_of_one_is_the_linear_layer_over_positions(
    size: tuple[int, int], place: torch.device
) -> None:
    input, weight = torch.randn(4, 7, *size), torch.randn(9, 7)
    bias = torch.randn(9)
    ours = F.dropconnect_conv2d(input, weight[..., None, None], bias, p=0.3, seed=SEED)
    positions = input.flatten(2).mT
    linear = F.dropconnect_linear(positions, weight, bias, 0.3, seed=SEED).mT.view(ours.shape)
    torch.testing.assert_close(ours, linear, rtol=1e-5, atol=1e-5)


GEOMETRY: dict[str, dict[str, Any]] = {
    "plain": {},
    "stride": {"stride": (2, 1), "padding": 1},
    "wide": {"stride": 3, "padding": (0, 2)},
    "dilation": {"padding": 2, "dilation": (1, 2)},
    "same": {"padding": "same", "dilation": (2, 1)},
    "valid": {"padding": "valid", "stride": [2]},
}


@pytest.mark.filterwarnings("ignore:.*padding='same' with even kernel")
@pytest.mark.parametrize("geometry", GEOMETRY)
@pytest.mark.parametrize("mask", ["example", 2, "batch"])
def test_output_and_gradients_follow_the_reference(
    geometry: str, mask: Any, groups: int, place: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convolutions, "PART_ELEMENTS", 100)  # of which a part has some masks
    settings = dict(GEOMETRY[geometry], groups=groups, p=0.3, mask=mask, seed=SEED)
    tensors = ((5, 2 * groups, 7, 6), (4 * groups, 2, 3, 2), (4 * groups,))
    leaves = [torch.randn(shape, dtype=torch.float64).requires_grad_() for shape in tensors]
    results = []
    for function in (F.dropconnect_conv2d, reference.dropconnect_conv):
        output = function(*leaves, **settings)
        direction = torch.arange(output.numel()).cos().double().view(output.shape)
        results.append([output, *torch.autograd.grad(output, leaves, direction)])
    for ours, wanted in zip(*results, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sums_of_short_operands_are_kept_in_float(
    dtype: torch.dtype, groups: int, parts: None, place: torch.device
) -> None:
    """One rounding from the true result, in every way and for any number of parts."""
    tensors = ((40, 8 * groups, 5, 5), (4 * groups, 8, 3, 3), (4 * groups,))
    short = [torch.randn(shape).to(dtype) for shape in tensors]
    results = []
    for leaves in (short, [each.double() for each in short]):
        leaves = [each.detach().requires_grad_() for each in leaves]
        output = F.dropconnect_conv2d(*leaves, groups=groups, seed=SEED)
        results.append([output, *torch.autograd.grad(output, leaves, torch.ones_like(output))])
    for ours, wanted in zip(*results, strict=True):
        error = (ours.double() - wanted).abs().max() / wanted.abs().max()
        assert error <= 0.51 * torch.finfo(dtype).eps


def test_rates_at_which_nothing_is_drawn(place: torch.device) -> None:
    input, weight, bias = torch.randn(2, 3, 5), torch.randn(4, 3, 2), torch.randn(4)
    before = torch.get_rng_state()
    dense = torch.nn.functional.conv1d(input, weight, bias)
    assert torch.equal(F.dropconnect_conv1d(input, weight, bias, p=0.0), dense)
    assert torch.equal(F.dropconnect_conv1d(input, weight, bias, training=False), dense)
    paper = F.dropconnect_conv1d(input, weight, bias, p=0.25, training=False, convention="paper")
    assert torch.equal(paper, dense * 0.75)
    assert torch.equal(torch.get_rng_state(), before)
    for mask in ("example", "batch"):
        dropped = F.dropconnect_conv1d(input, weight, bias, p=1.0, mask=mask)
        assert torch.equal(dropped, torch.zeros_like(dense))


@pytest.mark.parametrize("mask", ["example", 3, "batch"])
def test_one_example_and_none(mask: Any, groups: int, place: torch.device) -> None:
    weight, bias = torch.randn(3, 2, 3, 3), torch.randn(3)
    input = torch.randn(1, 2 * groups, 5, 4)
    keywords = {"groups": groups, "mask": mask, "seed": SEED}
    one = F.dropconnect_conv2d(input[0], weight, bias, **keywords)
    assert torch.equal(one, F.dropconnect_conv2d(input, weight, bias, **keywords)[0])
    leaves = [input[:0].requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    none = F.dropconnect_conv2d(*leaves, **keywords)
    assert none.shape == (0, *one.shape)
    for gradient, leaf in zip(torch.autograd.grad(none.sum(), leaves), leaves, strict=True):
        assert torch.equal(gradient, torch.zeros_like(leaf))


@pytest.mark.parametrize("dims", [2, 3])
def test_memory_formats_are_those_of_torch(dims: int, groups: int, place: torch.device) -> None:
    form = convolutions.CHANNELS_LAST[dims + 2]
    input = torch.randn(4, 6, *[5] * dims).contiguous(memory_format=form)
    weight = torch.randn(9, 6 // groups, *[3] * dims)
    output = CONVOLUTIONS[dims](input.requires_grad_(), weight, groups=groups, seed=SEED)
    dense = DENSE[dims](input, weight, groups=groups)
    assert output.stride() == dense.stride()
    (d_input,) = torch.autograd.grad(output, input, torch.ones_like(output))
    assert d_input.is_contiguous(memory_format=form)
    plain = CONVOLUTIONS[dims](input.detach().contiguous(), weight, groups=groups, seed=SEED)
    assert torch.equal(output, plain) and plain.is_contiguous()


BAD_CALLS: dict[str, Callable[[Any], object]] = {
    "kernel larger than the input": lambda f: f(torch.ones(1, 2, 2, 5), torch.ones(3, 2, 3, 3)),
    "no such channels": lambda f: f(torch.ones(1, 4, 5, 5), torch.ones(3, 2, 3, 3)),
    "no such dimensions": lambda f: f(torch.ones(1, 1, 2, 5, 5), torch.ones(3, 2, 3, 3)),
    "weight of a line": lambda f: f(torch.ones(1, 2, 5, 5), torch.ones(3, 2, 3)),
    "stride 0": lambda f: f(torch.ones(1, 2, 5, 5), torch.ones(3, 2, 3, 3), stride=0),
    "padding -1": lambda f: f(torch.ones(1, 2, 5, 5), torch.ones(3, 2, 3, 3), padding=-1),
    "dilation 0": lambda f: f(torch.ones(1, 2, 5, 5), torch.ones(3, 2, 3, 3), dilation=0),
    "groups 0": lambda f: f(torch.ones(1, 2, 5, 5), torch.ones(3, 2, 3, 3), groups=0),
    "groups 2": lambda f: f(torch.ones(1, 4, 5, 5), torch.ones(3, 2, 3, 3), groups=2),
    "three strides": lambda f: f(torch.ones(1, 2, 5, 5), torch.ones(3, 2, 3, 3), stride=(1, 1, 1)),
    "a float": lambda f: f(torch.ones(1, 2, 5, 5), torch.ones(3, 2, 3, 3), stride=1.5),
    "same and stride": lambda f: f(
        torch.ones(1, 2, 5, 5), torch.ones(3, 2, 3, 3), stride=2, padding="same"
    ),
    "bias": lambda f: f(torch.ones(1, 2, 5, 5), torch.ones(3, 2, 3, 3), torch.ones(2)),
    "nothing in height": lambda f: f(torch.ones(1, 2, 0, 5), torch.ones(3, 2, 3, 3)),
    "kernel of nothing": lambda f: f(torch.ones(1, 2, 5, 5), torch.ones(3, 2, 0, 3)),
}


@pytest.mark.parametrize("what", BAD_CALLS)
def test_errors_are_torch_s_and_change_nothing(what: str, place: torch.device) -> None:
    before = torch.get_rng_state()
    with pytest.raises((RuntimeError, TypeError, ValueError)) as ours:
        BAD_CALLS[what](F.dropconnect_conv2d)
    with pytest.raises((RuntimeError, TypeError, ValueError)) as torchs:
        BAD_CALLS[what](torch.nn.functional.conv2d)
    assert type(ours.value) is type(torchs.value)
    first_lines = [str(each.value).partition(" - got")[0] for each in (ours, torchs)]
    assert first_lines[0] == first_lines[1]  # behind it torch tells the values of all arguments
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("mask", [0, -1, "row", None, 1.5, True])
def test_masks_that_there_are_not(mask: Any) -> None:
    with pytest.raises(ValueError, match="mask must be 'example', 'batch' or an int >= 1"):
        F.dropconnect_conv1d(torch.ones(1, 1, 3), torch.ones(1, 1, 1), mask=mask)


def test_operands_of_two_dtypes_are_refused() -> None:
    with pytest.raises(RuntimeError, match="weight must have the dtype of input"):
        F.dropconnect_conv1d(torch.ones(1, 1, 3), torch.ones(1, 1, 1).double())
    with pytest.raises(NotImplementedError, match="input must have a dtype of"):
        F.dropconnect_conv1d(*[torch.ones(1, 1, 3, dtype=torch.complex64)] * 2)


BAD_OPERATOR_CALLS: dict[str, dict[str, Any]] = {
    "examples_per_mask": {"examples_per_mask": 0},
    "stride": {"stride": [0, 1]},
    "padding": {"padding": [1]},
    "groups": {"groups": 3},
    "kernel_size": {"dilation": [9, 1]},
    "probability": {"p": 1.5},
}


@pytest.mark.parametrize("name", BAD_OPERATOR_CALLS)
def test_operators_check_their_arguments(name: str) -> None:
    operators, state = extension.operators(), fused_dropout.make_rng_state(1)
    settings = {
        "p": 0.5, "examples_per_mask": 1, "scale": 1.0, "stride": [1, 1], "padding": [0, 0],
        "dilation": [1, 1], "groups": 1,
    } | BAD_OPERATOR_CALLS[name]  # fmt: skip
    input, weight, grad = torch.ones(2, 3, 5, 5), torch.ones(4, 3, 3, 3), torch.ones(2, 4, 3, 3)
    with pytest.raises(RuntimeError, match=name):
        operators.dropconnect_conv(input, weight, None, state, **settings)
    with pytest.raises(RuntimeError):
        operators.dropconnect_conv_d_input(grad, weight, state, **settings, size=[5, 5])
    with pytest.raises(RuntimeError):
        operators.dropconnect_conv_d_weight(grad, input, state, **settings, kernel_size=[3, 3])


def test_gradients_must_have_the_output_s_shape() -> None:
    operators, state = extension.operators(), fused_dropout.make_rng_state(1)
    settings = (0.5, 1, 1.0, [1, 1], [0, 0], [1, 1], 1)
    input, weight, grad = torch.ones(2, 3, 5, 5), torch.ones(4, 3, 3, 3), torch.ones(2, 4, 3, 2)
    for call in (
        lambda: operators.dropconnect_conv_d_input(grad, weight, state, *settings, [5, 5]),
        lambda: operators.dropconnect_conv_d_weight(grad, input, state, *settings, [3, 3]),
    ):
        with pytest.raises(RuntimeError, match=r"grad_output must have shape \[2, 4, 3, 3\]"):
            call()


def test_masks_can_be_stored_from_any_on(place: torch.device) -> None:
    draw = extension.operators().dropconnect_mask_bits
    weight, state = torch.ones(20, 300), fused_dropout.make_rng_state(SEED, 3)
    stored = draw(weight, state, 7, 0.3)
    for first in (0, 1, 5):
        assert torch.equal(draw(weight, state, 7 - first, 0.3, first), stored[:, first:])
    for first in (0, 5, 2**32 - 2, 2**41):
        bits = draw(weight, state, 4, 0.3, first)[:, :, :20].cpu().numpy().view(np.uint32)
        assert np.array_equal(bits, masks_from(first, 4, 20, 300, 0.3, SEED, 3)), first
    for masks, first in ((1, -1), (1, 2**45), (1, 2**62), (2**47, 2**46), (2**62, 2**62)):
        with pytest.raises(RuntimeError, match="first_mask"):
            draw(weight, state, masks, 0.3, first)
    with pytest.raises(RuntimeError, match=r"at most 2\^48 groups"):  # 3 groups a row
        draw(weight, state, 1, 0.3, 2**43)


def test_backward_keeps_the_operands_alone() -> None:
    input, weight = torch.randn(8, 4, 6, 6, requires_grad=True), torch.randn(5, 4, 3, 3)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        F.dropconnect_conv2d(input, weight.requires_grad_(), p=0.3)
    assert sorted(tensor.numel() for tensor in kept) == [2, weight.numel(), input.numel()]


@pytest.mark.parametrize("patches", [False, True])
@pytest.mark.parametrize("each", [1, 3])
def test_a_part_is_bounded_or_one_mask(each: int, patches: bool) -> None:
    """Masked weights of all 100 examples would have 2^26 elements, and their patches 2^24."""
    for channels in (256, 2048):
        settings = convolutions.Settings(0.5, each, 1.0, (1, 1), (1, 1), (1, 1), 1)
        problem = convolutions.problem_of((100, channels, 8, 8), (256, channels, 3, 3), settings)
        parts = problem.parts(patches, torch.empty(0))
        rows = each * 64 if patches else 256
        for part in parts:
            made = part.masks * rows * problem.columns
            assert made <= convolutions.PART_ELEMENTS or part.masks == 1
        assert len(parts) > 1
        assert sum(part.masks for part in parts) == math.ceil(100 / each)
        assert [part.examples.start for part in parts[1:]] == [
            part.examples.stop for part in parts[:-1]
        ]


@pytest.mark.parametrize("mask", ["example", "batch"])
def test_autocast_casts_as_convolutions_do(mask: Any, place: torch.device) -> None:
    leaves = [torch.randn(2, 3, 6, 6), torch.randn(4, 3, 3, 3), torch.randn(4)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    with torch.autocast(place.type, torch.bfloat16):
        output = F.dropconnect_conv2d(*leaves, mask=mask, seed=SEED)
    assert output.dtype == torch.bfloat16
    assert all(each.dtype == torch.float32 for each in torch.autograd.grad(output.sum(), leaves))
    short = [leaf.detach().bfloat16() for leaf in leaves]
    assert torch.equal(output, F.dropconnect_conv2d(*short, mask=mask, seed=SEED))
