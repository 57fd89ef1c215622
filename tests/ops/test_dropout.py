"""Dropout: which elements are kept and what becomes of them, for every layout, dtype and size.

An element is one multiplication by 1/q, rounded once to the dtype; with a residual, one addition
more. So results must equal the reference's in every bit. Only alpha dropout, whose multiplication
and addition may be fused, is held to a bound.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from support.alpha_dropout import functional_alpha
from support.devices import threads
from support.tensors import (
    DTYPES,
    Shape,
    assert_same_bits,
    computing_type,
    layouts,
    permuted,
    random_tensor,
)
from torch import Tensor

import fused_dropout
from fused_dropout import functional, reference
from fused_dropout._core import extension
from fused_dropout._tools import memory
from fused_dropout.reference import _dropout as written_out


@pytest.fixture(autouse=True, scope="module")
def masks_are_written_out_once() -> Iterator[None]:
    """The reference takes most of the time, for the same masks again and again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(written_out, "mask", functools.lru_cache(maxsize=512)(reference.mask))
        yield


def expected_of(function: Callable[..., Tensor], input: Tensor, *args: object, **kwargs: object):
    """The reference's result, computed in float32 (float64) and rounded once."""
    return function(input.to(computing_type(input.dtype)), *args, **kwargs).to(input.dtype)


def check(input: Tensor, p: float, what: object = "", **kwargs: object) -> None:
    """Out of place and in place, against the reference."""
    expected = expected_of(written_out.dropout, input, p, seed=3, **kwargs)
    before = input.clone()
    output = functional.dropout(input, p, seed=3, **kwargs)
    assert_same_bits(output, expected, what)
    assert_same_bits(input, before, "the input has changed")
    assert output.stride() == torch.empty_like(input).stride(), what
    returned = functional.dropout(input, p, inplace=True, seed=3, **kwargs)
    assert returned is input
    assert_same_bits(input, expected, ("in place", what))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("p", [0.5, 0.1])
def test_sizes(p: float, dtype: torch.dtype, backend: torch.device) -> None:
    for size in (0, 1, 2, 15, 16, 17, 31, 33, 127, 128, 129, 4095, 4096, 4097, 32769, 100_003):
        check(random_tensor((size,), dtype), p, size)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(), (1,), (1, 1), (3, 0, 5), (40, 50), (2, 40, 9, 7), (3, 5, 1, 130), (2, 3, 4, 5, 6)]
)
def test_layouts(shape: Shape, dtype: torch.dtype, backend: torch.device) -> None:
    for name, input in layouts(random_tensor(shape, dtype)):
        for p in (0.5, 0.3):
            check(input, p, name)


@pytest.mark.parametrize("shape", [(3, 20, 5, 33), (2, 70, 4, 3), (1, 17, 1, 40)])
def test_every_choice_of_shared_dimensions(shape: Shape, backend: torch.device) -> None:
    input = random_tensor(shape)
    for count in range(5):
        for dims in itertools.combinations(range(-4, 0), count):
            for name, view in layouts(input):
                check(view.clone(), 0.3, (dims, name), broadcast_dims=dims)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("columns", [2, 3, 8, 9, 15, 16, 17, 24, 100, 1024, 4099])
def test_transposed_matrices(columns: int, dtype: torch.dtype, backend: torch.device) -> None:
    """Edges of vectors, tables and tiles: a matrix whose columns lie in memory, and batches."""
    for rows in (2, 3, 8, 9, 31, 32, 33, 130, *([9000] if columns <= 17 else [])):
        check(random_tensor((columns, rows), dtype).t(), 0.3, rows)
    check(permuted(random_tensor((3, 40, columns), dtype), 2, 1, 0), 0.5)
    check(permuted(random_tensor((3, columns, 40), dtype), 2, 0, 1), 0.5)


@pytest.mark.parametrize("shape", [(2, 3, 5, 70), (40, 2, 9, 3), (5, 70, 17, 2)])
def test_every_order_of_dimensions(shape: Shape, backend: torch.device) -> None:
    """In memory, and with any of them shared."""
    for order in itertools.permutations(range(4)):
        for count in range(4):
            for dims in itertools.combinations(range(4), count):
                input = permuted(random_tensor(shape), *order)
                check(input, 0.4, (order, dims), broadcast_dims=dims)


def test_expanded_input(backend: torch.device) -> None:
    row = random_tensor((3, 1, 50))
    expected = written_out.dropout(row.expand(3, 20, 50), 0.3, seed=3)
    assert_same_bits(functional.dropout(row.expand(3, 20, 50), 0.3, seed=3), expected)
    with pytest.raises(RuntimeError, match="single memory location"):
        functional.dropout(row.expand(3, 20, 50), 0.3, inplace=True, seed=3)


def test_a_misaligned_view(backend: torch.device) -> None:
    for dtype in DTYPES:
        for first in (1, 3, 5):
            check(random_tensor((1000,), dtype)[first:], 0.3)


def test_nothing_around_the_tensor_is_written(backend: torch.device) -> None:
    for dtype in DTYPES:
        for shape, order, dims in (
            ((129,), (0,), ()),
            ((40, 33), (1, 0), ()),
            ((3, 5), (1, 0), ()),
            ((2, 20, 3, 5), (0, 2, 3, 1), (2, 3)),
            ((2, 3, 70), (0, 1, 2), (2,)),
        ):
            count = math.prod(shape)
            memory_ = torch.full((count + 400,), 7.0, dtype=dtype)
            inside = memory_[200 : 200 + count].view([shape[dim] for dim in order])
            input = inside.permute([order.index(dim) for dim in range(len(order))])
            functional.dropout(input, 0.5, inplace=True, broadcast_dims=dims, seed=3)
            assert (memory_[:200] == 7).all()
            assert (memory_[200 + count :] == 7).all()
            assert (inside != 7).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_residual_is_added_after_the_mask(dtype: torch.dtype, backend: torch.device) -> None:
    """out = (kept ? scale * input : fill) + residual: two roundings in the computing type."""
    q = reference.keep_rate(0.3)
    wide = computing_type(dtype)
    state = fused_dropout.make_rng_state(3)
    for shape, dims in (((1000,), []), ((2, 40, 9, 7), []), ((2, 40, 9, 7), [2, 3]), ((9, 3), [1])):
        residual = random_tensor(shape, dtype, seed=1)
        for name, input in layouts(random_tensor(shape, dtype)):
            kept = written_out.shared_mask(input, 0.3, dims, 3, 0)
            scaled = torch.where(kept, input.to(wide) * (1 / q), -0.5)
            expected = (scaled + residual.to(wide)).to(dtype)
            arguments = (residual, state, 0.3, 1 / q, dims, 0.0, -0.5)
            output = extension.operators().dropout(input, *arguments)
            assert_same_bits(output, expected, name)
            extension.operators().dropout_(input, *arguments)
            assert_same_bits(input, expected, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_16_bit_number(dtype: torch.dtype, backend: torch.device) -> None:
    """Subnormals, both zeros, the largest, infinities and NaNs; results round to nearest even."""
    numbers = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)
    for p in (0.5, 0.3, 0.9):
        check(numbers.clone(), p)
        check(permuted(numbers.clone().view(256, 256), 1, 0), p)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinity_stay_with_kept_elements(
    dtype: torch.dtype, backend: torch.device
) -> None:
    for special in (math.nan, math.inf, -math.inf):
        for function in (functional.dropout, functional.alpha_dropout):
            input = torch.full((777,), special, dtype=dtype)
            kept = fused_dropout.mask(777, 0.4, seed=3)
            output = function(input, 0.4, True, seed=3)
            assert torch.equal(output.isfinite(), ~kept)
            assert torch.equal(output.isnan(), kept if math.isnan(special) else kept & False)
    zeros = functional.dropout(torch.full((777,), math.nan, dtype=dtype), 1.0)
    assert torch.equal(zeros, torch.zeros_like(zeros))


def test_gradients_of_nan_and_infinity_stay_with_kept_elements(backend: torch.device) -> None:
    input = torch.ones(500, requires_grad=True)
    output = functional.dropout(input, 0.4, seed=3)
    (gradient,) = torch.autograd.grad(output, input, torch.full((500,), math.nan))
    assert torch.equal(gradient.isnan(), fused_dropout.mask(500, 0.4, seed=3))
    assert not gradient.nan_to_num().any()


# ---- channels, sequences, alpha dropout, the paper's convention

CHANNELS = {
    "dropout1d": ((4, 9, 33), (9, 33)),
    "dropout2d": ((4, 9, 8, 33), (2, 20, 40, 40)),
    "dropout3d": ((2, 9, 4, 8, 5), (9, 4, 8, 5)),
}


@pytest.mark.parametrize("name", CHANNELS)
def test_channels(name: str, backend: torch.device) -> None:
    for shape, dtype in itertools.product(CHANNELS[name], DTYPES):
        for layout, input in layouts(random_tensor(shape, dtype)):
            expected = expected_of(getattr(written_out, name), input, 0.3, seed=3)
            output = getattr(functional, name)(input, 0.3, seed=3)
            assert_same_bits(output, expected, (shape, layout))
            getattr(functional, name)(input, 0.3, inplace=True, seed=3)
            assert_same_bits(input, expected, ("in place", shape, layout))


@pytest.mark.filterwarnings("ignore:dropout3d.*6:UserWarning")
def test_dropout3d_of_six_dimensions(backend: torch.device) -> None:
    """As torch's: the first dimension counts channels, which share their bit over all others."""
    input = random_tensor((40, 3, 2, 3, 2, 2))
    kept = fused_dropout.mask(40, 0.3, seed=3).view(40, 1, 1, 1, 1, 1)
    expected = torch.where(kept, input * (1 / reference.keep_rate(0.3)), 0.0)
    assert_same_bits(functional.dropout3d(input, 0.3, seed=3), expected)


@pytest.mark.parametrize("batch_first", [False, True])
def test_locked_dropout_keeps_its_mask_over_time(batch_first: bool, backend: torch.device) -> None:
    for shape in ((35, 20), (35, 20, 50), (35, 4, 3, 6)):
        for layout, input in layouts(random_tensor(shape)):
            keys = {"batch_first": batch_first, "seed": 3}
            expected = written_out.locked_dropout(input, 0.3, **keys)
            assert_same_bits(functional.locked_dropout(input, 0.3, **keys), expected, layout)
    ones = functional.locked_dropout(torch.ones(35, 20, 50), 0.3, batch_first=batch_first)
    time = 1 if batch_first else 0
    assert torch.equal(ones, ones.narrow(time, 0, 1).expand_as(ones))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["alpha_dropout", "feature_alpha_dropout"])
def test_alpha_dropout(name: str, dtype: torch.dtype, backend: torch.device) -> None:
    """Within one rounding of each term, and of the result, of the reference in float64."""
    for p in (0.5, 0.1, 0.9):
        # Channels of 42 elements, and of 72, which the CPU takes as long rows.
        inputs = [*layouts(random_tensor((3, 20, 6, 7), dtype))]
        for layout, input in [*inputs, ("long", random_tensor((3, 20, 9, 8), dtype))]:
            truth = getattr(written_out, name)(input.double(), p, seed=3)
            output = getattr(functional, name)(input, p, True, seed=3)
            a, b = functional_alpha(p)
            terms = torch.finfo(computing_type(dtype)).eps * ((a * input.double()).abs() + abs(b))
            bound = 2 * terms + torch.finfo(dtype).eps * truth.abs() + torch.finfo(dtype).tiny
            assert ((output.double() - truth).abs() <= bound).all(), layout
            assert output.stride() == torch.empty_like(input).stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_paper_convention(dtype: torch.dtype, backend: torch.device) -> None:
    """Unscaled in training, times q in evaluation."""
    input = random_tensor((7, 300), dtype)
    keys = {"convention": "paper"}
    kept = fused_dropout.mask(2100, 0.3, seed=3).view(7, 300)
    output = functional.dropout(input, 0.3, seed=3, **keys)
    assert_same_bits(output, torch.where(kept, input, torch.zeros_like(input)))
    evaluated = functional.dropout(input, 0.3, False, **keys)
    assert_same_bits(evaluated, input * reference.keep_rate(0.3))
    assert functional.dropout(input, 0.3, False, True, **keys) is input
    assert_same_bits(input, evaluated)


# ---- the mask


def test_masks_are_the_contract_s(backend: torch.device) -> None:
    """rows = 1, cols = the elements of the mask, counted in logical order."""
    for p in (0.5, 0.25, 0.1, 0.999):
        kept = fused_dropout.mask(6000, p, seed=-9).view(20, 300)
        input = permuted(torch.ones(20, 300), 1, 0)
        assert torch.equal(functional.dropout(input, p, seed=-9) != 0, kept)
        image = torch.ones(20, 300, 2, 4).contiguous(memory_format=torch.channels_last)
        channels = functional.dropout2d(image, p, seed=-9)
        assert torch.equal(channels[:, :, 1, 2] != 0, kept)


def test_results_do_not_depend_on_threads(isa: str) -> None:
    for shape, dims in (
        ((300_001,), ()),
        ((3, 70, 50, 60), ()),
        ((3, 70, 50, 60), (2, 3)),
        ((2, 3, 190, 150), ()),
        ((2, 3, 190, 150), (2, 3)),
        ((2, 190, 150, 3), ()),
        ((5, 50_001), (1,)),
    ):
        dense = random_tensor(shape)
        others = [("channels first", permuted(dense, 0, 3, 1, 2))] if dense.dim() == 4 else []
        for name, input in (*layouts(dense), *others):
            with threads(1):
                alone = functional.dropout(input, 0.1, broadcast_dims=dims, seed=9)
            for count in (2, 3, 7):
                with threads(count):
                    together = functional.dropout(input, 0.1, broadcast_dims=dims, seed=9)
                assert torch.equal(alone, together), name


LARGE = 2**31 + 1000  # elements, more than 32 bits count


def test_more_than_2_31_elements() -> None:
    """4 GiB of bf16 in place; skipped where less than 10 GiB are free."""
    free = memory.available_bytes()
    if free is None or free < 10 * 2**30:
        pytest.skip(f"needs 10 GiB of free memory, has {(free or 0) / 2**30:.1f}")
    input = torch.ones(LARGE, dtype=torch.bfloat16)
    functional.dropout(input, 0.5, inplace=True, seed=5)
    # The groups at the end, each a row of the contract's matrix.
    groups = torch.arange((LARGE - 2000) // 128, -(-LARGE // 128)).numpy().astype("uint64")
    digit = reference.fraction_digit(0, groups, 5, 0, 0)
    tail = input[int(groups[0]) * 128 :]
    assert torch.equal(tail != 0, torch.from_numpy(digit.reshape(-1)[: len(tail)] == 0))
    # Transposed, so that the packed bits are read; every other element is dropped or kept alike.
    matrix = input.fill_(1)[: 2**31].view(2**17, 2**14).t()
    functional.dropout(matrix, 0.5, inplace=True, seed=5)
    last = reference.fraction_digit(0, groups[:1] * 0 + (2**31 // 128 - 1), 5, 0, 0)
    assert torch.equal(matrix[-1, -128:] != 0, torch.from_numpy(last[0] == 0))


def test_a_tiny_rate_gives_a_tensor_of_its_own(place: torch.device) -> None:
    """As torch's: the result shares the input's memory at p = 0 only, or in place."""
    input = random_tensor((2, 3, 4, 5), torch.float32)
    before = input.clone()
    functions = (
        functional.dropout,
        functional.dropout2d,
        functional.locked_dropout,
        functional.alpha_dropout,
        functional.feature_alpha_dropout,
        functional.drop_path,
    )
    for function in functions:
        output = function(input, 2**-18, training=True)
        assert torch.equal(output, input)
        output.zero_()
        assert torch.equal(input, before), function
        assert function(input, 0.0, training=True) is input
    assert functional.dropout(input, 2**-18, inplace=True) is input
