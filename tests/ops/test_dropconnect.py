"""dropconnect_linear: values, gradients, mask modes, strides, dtypes, threads, special values."""

from __future__ import annotations

import itertools
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from support.accuracy import is_accurate, own_and_truth
from support.devices import threads
from support.dropconnect import MODES, random_operands
from support.tensors import DTYPES, with_gradients
from torch import Tensor

import fused_dropout
from fused_dropout import reference
from fused_dropout._core import extension
from fused_dropout._tools.memory import kept_for_backward
from fused_dropout.functional import dropconnect_linear
from fused_dropout.functional._dropconnect import stores_masks

# (input shape, out_features): edges of lanes, groups, tiles and panels.
SHAPES = (
    ((1, 1), 1),
    ((3, 127), 5),
    ((7, 128), 8),
    ((6, 129), 33),
    ((13, 1025), 17),
    ((2, 5, 64), 40),
    ((4, 3, 2, 50), 9),
    ((97, 260), 130),
    ((530, 40), 12),
    ((200,), 31),
)


def check_against_reference(
    operands: tuple[Tensor, ...], storage: str = "auto", **kwargs: object
) -> None:
    ours = with_gradients(dropconnect_linear, operands, mask_storage=storage, **kwargs)
    own, truth = own_and_truth(reference.dropconnect_linear, operands, **kwargs)
    names = ("output", "d_input", "d_weight", "d_bias")
    for name, a, b, t in zip(names, ours, own, truth, strict=True):
        assert a.device == operands[0].device
        assert is_accurate(a, b, t), f"{name} of {kwargs}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "out_features"), SHAPES)
def test_matches_reference(
    shape: tuple[int, ...], out_features: int, dtype: torch.dtype, backend: torch.device
) -> None:
    operands = random_operands(shape, out_features, dtype)
    for p, storage in ((0.5, "regenerate"), (0.1, "packed")):
        check_against_reference(operands, storage, p=p, seed=7)


@pytest.mark.parametrize("convention", ["inverted", "paper"])
@pytest.mark.parametrize("mask", MODES)
@pytest.mark.parametrize("shape", [(8, 70), (5, 3, 70), (2, 3, 4, 70)])
def test_mask_modes_match_reference(
    shape: tuple[int, ...], mask: str | int, convention: str, backend: torch.device
) -> None:
    operands = random_operands(shape, 20, torch.float32)
    for storage in ("regenerate", "packed"):
        check_against_reference(operands, storage, p=0.3, mask=mask, convention=convention, seed=-5)


@pytest.mark.parametrize("mask", MODES)
def test_masks_are_the_contract_s(mask: str | int, backend: torch.device) -> None:
    """With one-hot rows and unit weights the output shows the mask itself, bit for bit."""
    rows, in_features, out_features = 6, 140, 10
    share = reference.rows_per_mask((rows, in_features), mask)
    n_masks = -(-rows // share)
    kept = fused_dropout.mask((n_masks * out_features, in_features), 0.5, seed=4)
    kept = kept.view(n_masks, out_features, in_features)
    weight = torch.ones(out_features, in_features)
    for column in (0, 63, 127, 128, 139):
        input = torch.zeros(rows, in_features)
        input[:, column] = 1
        output = dropconnect_linear(input, weight, None, 0.5, mask=mask, seed=4)
        expected = kept[torch.arange(rows) // share, :, column]
        assert torch.equal(output, 2.0 * expected)


def test_bias_masks_are_the_contract_s(backend: torch.device) -> None:
    bias_mask = fused_dropout.mask((5, 200), 0.3, seed=8, stream=1)
    output = dropconnect_linear(
        torch.zeros(5, 3), torch.zeros(200, 3), torch.ones(200), 0.3, seed=8
    )
    q = reference.keep_rate(0.3)
    assert torch.equal(output != 0, bias_mask)
    assert torch.equal(output[bias_mask], torch.full_like(output[bias_mask], 1 / q))


@pytest.mark.parametrize("mask", MODES)
@pytest.mark.parametrize("storage", ["regenerate", "packed"])
def test_gradcheck(mask: str | int, storage: str, place: torch.device) -> None:
    input, weight, bias, _ = random_operands((2, 4, 11), 5, torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (input, weight, bias)]

    def layer(*tensors: Tensor) -> Tensor:
        return dropconnect_linear(*tensors, p=0.4, mask=mask, seed=3, mask_storage=storage)

    assert torch.autograd.gradcheck(layer, leaves)
    assert torch.autograd.gradgradcheck(layer, leaves)


@pytest.mark.parametrize("wanted", list(itertools.product([True, False], repeat=3)))
def test_only_the_gradients_asked_for(wanted: tuple[bool, ...], place: torch.device) -> None:
    operands = random_operands((6, 150), 12, torch.float64)
    leaves = [t.clone().requires_grad_(w) for t, w in zip(operands[:3], wanted, strict=True)]
    everything = with_gradients(dropconnect_linear, operands, p=0.2, seed=1)[1:]
    output = dropconnect_linear(*leaves, p=0.2, seed=1)
    assert output.requires_grad == any(wanted)
    if any(wanted):
        output.backward(operands[3])
    for leaf, full in zip(leaves, everything, strict=True):
        if leaf.requires_grad:
            torch.testing.assert_close(leaf.grad, full)
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
def test_strides_do_not_matter(dtype: torch.dtype, backend: torch.device) -> None:
    operands = random_operands((9, 131), 21, dtype)
    dense = with_gradients(dropconnect_linear, operands, p=0.3, seed=2)

    def strided(tensor: Tensor) -> Tensor:
        spread = torch.full([2 * size for size in tensor.shape], math.nan, dtype=dtype)
        view = spread[tuple(slice(1, None, 2) for _ in tensor.shape)]
        return view.copy_(tensor)

    def transposed(tensor: Tensor) -> Tensor:
        return tensor.t().contiguous().t() if tensor.dim() == 2 else tensor

    for view in (strided, transposed):
        views = tuple(view(tensor) for tensor in operands)
        for a, b in zip(
            with_gradients(dropconnect_linear, views, p=0.3, seed=2), dense, strict=True
        ):
            assert torch.equal(a, b)


def test_expanded_gradient_and_input(place: torch.device) -> None:
    _, weight, bias, _ = random_operands((4, 30), 7, torch.float64)
    row = torch.randn(30, dtype=torch.float64)
    leaf = row.clone().requires_grad_()
    dropconnect_linear(leaf.expand(4, 30), weight, bias, 0.5, seed=6).sum().backward()
    other = row.clone().requires_grad_()
    reference.dropconnect_linear(other.expand(4, 30), weight, bias, 0.5, seed=6).sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad)


@pytest.mark.parametrize("shape", [(64, 200), (33, 900), (3, 70), (600, 130)])
def test_results_do_not_depend_on_threads(shape: tuple[int, int], isa: str) -> None:
    operands = random_operands(shape, 100, torch.float32)
    for storage in ("regenerate", "packed"):
        with threads(1):
            alone = with_gradients(
                dropconnect_linear, operands, p=0.1, seed=9, mask_storage=storage
            )
        for count in (2, 3, 7):
            with threads(count):
                together = with_gradients(
                    dropconnect_linear, operands, p=0.1, seed=9, mask_storage=storage
                )
            for a, b in zip(alone, together, strict=True):
                assert torch.equal(a, b)


def test_storage_gives_the_same_bits(backend: torch.device) -> None:
    operands = random_operands((20, 300), 50, torch.float32)
    for p in (0.5, 0.1):
        drawn = with_gradients(dropconnect_linear, operands, p=p, seed=1, mask_storage="regenerate")
        stored = with_gradients(dropconnect_linear, operands, p=p, seed=1, mask_storage="packed")
        for a, b in zip(drawn, stored, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 0), (2, 0, 5), (0, 3, 5)])
@pytest.mark.parametrize("out_features", [0, 6])
@pytest.mark.parametrize("mask", MODES)
def test_empty(
    shape: tuple[int, ...], out_features: int, mask: str | int, place: torch.device
) -> None:
    operands = random_operands(shape, out_features, torch.float32)
    for storage in ("regenerate", "packed"):
        ours = with_gradients(
            dropconnect_linear, operands, p=0.5, seed=0, mask=mask, mask_storage=storage
        )
        truth = with_gradients(reference.dropconnect_linear, operands, p=0.5, seed=0, mask=mask)
        for a, b in zip(ours, truth, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("p", [0.0, 1e-9])
def test_p_zero_is_the_linear_layer(p: float, place: torch.device) -> None:
    operands = random_operands((5, 40), 8, torch.float32)
    for a, b in zip(
        with_gradients(dropconnect_linear, operands, p=p),
        with_gradients(torch.nn.functional.linear, operands),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_p_one_gives_zeros_and_zero_gradients(place: torch.device) -> None:
    operands = random_operands((5, 40), 8, torch.float32)
    for convention in ("inverted", "paper"):
        for result in with_gradients(dropconnect_linear, operands, p=1.0, convention=convention):
            assert not result.any()


def test_evaluation(place: torch.device) -> None:
    input, weight, bias, _ = random_operands((5, 40), 8, torch.float32)
    linear = torch.nn.functional.linear(input, weight, bias)
    assert torch.equal(dropconnect_linear(input, weight, bias, 0.3, False), linear)
    paper = dropconnect_linear(input, weight, bias, 0.3, False, convention="paper")
    assert torch.equal(paper, linear * reference.keep_rate(0.3))


def test_mean_over_masks_is_the_linear_layer(place: torch.device) -> None:
    """E[y] is exact. z is standard normal for each of 40 outputs: |z| < 5.6 fails by chance with
    probability 40 x 2.1e-8 < 1e-6."""
    input, weight, bias, _ = random_operands((1, 60), 40, torch.float64)
    for p in (0.5, 0.1):
        q, repeats = reference.keep_rate(p), 4_000
        outputs = dropconnect_linear(input.expand(repeats, 60), weight, bias, p, mask="row", seed=1)
        variance = (1 - q) / q * ((weight**2) @ (input[0] ** 2) + bias**2)
        expected = torch.nn.functional.linear(input[0], weight, bias)
        z = (outputs.mean(0) - expected) / (variance / repeats).sqrt()
        assert z.abs().max() < 5.6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("special", [math.nan, math.inf])
def test_special_values_stay_with_kept_products(
    dtype: torch.dtype, special: float, backend: torch.device
) -> None:
    """A dropped product adds 0, never 0 * inf; a kept one propagates."""
    rows, in_features, out_features = 4, 70, 16
    kept = fused_dropout.mask((rows * out_features, in_features), 0.5, seed=2)
    kept = kept.view(rows, out_features, in_features)
    input = torch.ones(rows, in_features, dtype=dtype)
    input[:, 33] = special
    weight = torch.ones(out_features, in_features, dtype=dtype)
    output = dropconnect_linear(input, weight, None, 0.5, seed=2)
    assert torch.equal(output.isfinite(), ~kept[:, :, 33])

    grad = torch.ones(rows, out_features, dtype=dtype)
    grad[2, 5] = special
    leaves = [input.fill_(1.0).requires_grad_(), weight.requires_grad_()]
    d_input, d_weight = torch.autograd.grad(
        dropconnect_linear(*leaves, None, 0.5, seed=2), leaves, grad
    )
    assert torch.equal(d_input[2].isfinite(), ~kept[2, 5])
    assert torch.equal(d_weight[5].isfinite(), ~kept[2, 5])
    assert d_input[[0, 1, 3]].isfinite().all()


def test_float16_extremes_round_as_torch(place: torch.device) -> None:
    """Every fp16 value but NaN survives the way in, and the way out rounds to nearest even."""
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    values = bits.view(torch.float16)
    values = values[~values.isnan()]
    # One input feature, weight 1, scaled by nothing but the mask: kept rows show the value itself.
    one = torch.ones(1, 1, dtype=torch.float16)
    output = dropconnect_linear(values[:, None], one, None, 0.5, convention="paper", seed=1)
    kept = fused_dropout.mask((len(values), 1), 0.5, seed=1)
    assert torch.equal(output[kept], values[:, None][kept])

    halves = torch.linspace(-70_000, 70_000, 4_001).to(torch.float32)
    scale = torch.full((1, 1), 2**-20).to(torch.float16)
    tiny = dropconnect_linear(
        halves.to(torch.float16)[:, None], scale, None, 0.5, convention="paper", seed=1
    )
    exact = (halves.to(torch.float16).float() * scale.float()[0]).to(torch.float16)
    kept = fused_dropout.mask((len(halves), 1), 0.5, seed=1)[:, 0]
    assert torch.equal(tiny[kept, 0], exact[kept])


def test_saves_no_masks_by_default_at_one_digit(place: torch.device) -> None:
    """What forward keeps for backward: the operands and 16 bytes of random state."""
    operands = random_operands((8, 256), 64, torch.float32)
    leaves = [tensor.requires_grad_() for tensor in operands[:3]]
    kept = kept_for_backward(lambda: dropconnect_linear(*leaves, 0.5))
    extra = [t for t in kept if not any(t.data_ptr() == leaf.data_ptr() for leaf in leaves)]
    assert sum(t.numel() * t.element_size() for t in extra) == 16


@pytest.mark.parametrize("wanted", list(itertools.product([True, False], repeat=3)))
def test_saves_only_what_gradients_need(wanted: tuple[bool, ...], place: torch.device) -> None:
    """As F.linear: an operand is kept for the other's gradient alone."""
    operands = random_operands((8, 256), 64, torch.float32)[:3]
    leaves = [t.requires_grad_(w) for t, w in zip(operands, wanted, strict=True)]
    kept = kept_for_backward(lambda: dropconnect_linear(*leaves, 0.5))
    pointers = {tensor.data_ptr() for tensor in kept}
    assert (leaves[0].data_ptr() in pointers) == wanted[1]
    assert (leaves[1].data_ptr() in pointers) == wanted[0]


def test_packed_masks_take_one_bit_per_connection(place: torch.device) -> None:
    state = fused_dropout.make_rng_state(0)
    bits = torch.ops.fused_dropout.dropconnect_mask_bits(torch.empty(64, 256), state, 8, 0.1)
    assert bits.numel() * bits.element_size() == 8 * 64 * 256 // 8


@pytest.mark.parametrize("p", [0.0, 0.5, 0.1, 1.0])
@pytest.mark.parametrize(("shape", "outs"), [*SHAPES, ((0, 9), 4), ((5, 0), 3), ((5, 9), 0)])
@pytest.mark.parametrize("rows_per_mask", [1, 3, 2**62])
def test_output_and_bits_are_those_of_two_operators(
    shape: tuple[int, ...], outs: int, rows_per_mask: int, p: float, place: torch.device
) -> None:
    operators = extension.operators()
    *operands, _ = random_operands((math.prod(shape[:-1]), shape[-1]), outs, torch.float32)
    state, settings = fused_dropout.make_rng_state(4, 7), (p, rows_per_mask, 1.5)
    output, bits = operators.dropconnect_linear_with_bits(*operands, state, *settings)
    masks = -(-operands[0].shape[0] // rows_per_mask)
    expected = operators.dropconnect_mask_bits(operands[1], state, masks, p)
    assert bits.shape == expected.shape
    assert torch.equal(bits[:, :, :outs], expected[:, :, :outs])  # the rest fills memory up
    alone = operators.dropconnect_linear(*operands, state, None, *settings)
    torch.testing.assert_close(output, alone)
    assert not bits.requires_grad


@pytest.mark.parametrize(("p", "mib"), [(0.25, 16), (0.125, 64)])
@pytest.mark.parametrize(
    ("rows_too_many", "out_features", "in_features"),
    [(0, 1024, 128), (1, 1024, 128), (0, 1024, 1), (1, 1017, 1)],
)
def test_auto_stores_what_its_rule_allows(
    rows_too_many: int,
    out_features: int,
    in_features: int,
    p: float,
    mib: int,
) -> None:
    """On the CPU, counted as laid out, in_features and out_features rounded up: 64 rows a MiB."""
    input = torch.ones(64 * mib + rows_too_many, in_features, requires_grad=True)
    weight = torch.ones(out_features, in_features)
    kept = kept_for_backward(lambda: dropconnect_linear(input, weight, None, p))
    bits = sum(t.nbytes for t in kept if t.dtype == torch.int32)
    assert bits == (0 if rows_too_many else mib << 20)


class OnGpu:
    """As much of a weight on a GPU as the rule looks at."""

    is_cuda = True
    device = torch.device("cuda", 0)

    def __init__(self, *shape: int) -> None:
        self.shape = torch.Size(shape)


@pytest.mark.parametrize(
    ("p", "shape", "memory", "packed"),
    [
        (0.5, (1024, 1024), 1 << 24, True),  # one digit; 16 MiB are the cache
        (0.5, (1024, 2048), 1 << 31, True),  # 32 MiB are a 64th of the memory
        (0.5, (1024, 2048), (1 << 31) - 64, False),
        (0.25, (1024, 1024), 1 << 40, True),  # two; 128 KiB a mask
        (0.1, (1024, 1024), 1 << 24, True),  # in the cache
        (0.1, (1024, 2048), 1 << 29, True),  # 32 MiB are a sixteenth of the memory
        (0.1, (1024, 2048), (1 << 29) - 16, False),
        (0.0, (1024, 1024), 1 << 40, False),  # nothing is drawn
    ],
)
def test_auto_stores_what_fits_in_a_gpu(
    monkeypatch: pytest.MonkeyPatch, p: float, shape: tuple[int, int], memory: int, packed: bool
) -> None:
    """With 128 masks, on a GPU with a cache of 16 MiB."""
    properties = SimpleNamespace(total_memory=memory, L2_cache_size=1 << 24)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    stores = partial(stores_masks, p=p, n_masks=128, weight=OnGpu(*shape))  # type: ignore[arg-type]
    assert stores("auto", shared=False) == packed
    assert stores("auto", shared=True) == (packed and p != 0.5)  # which drawing would not store
    assert stores("packed", shared=False)
    assert not stores("regenerate", shared=False)
