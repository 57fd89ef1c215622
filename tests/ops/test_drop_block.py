"""DropBlock: on every backend the reference's numbers, bit for bit; its options; its statistics."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from support.devices import generator_state, threads
from support.drop_block import FUNCTIONS
from support.tensors import DTYPES
from torch import Tensor

import fused_dropout
from fused_dropout import reference
from fused_dropout._core.drop_block_gamma import exact_gamma, paper_gamma
from fused_dropout._tools.memory import kept_for_backward
from fused_dropout.functional import drop_block2d
from fused_dropout.nn import DropBlock2d

SEED = 1234567

# (shape, block size): words of 32, 64 and 128 bits cut at any place; even and unequal sides; blocks
# as large as the map and larger; rows longer than a word; blocks longer than a word.
CASES = (
    ((2, 3, 7, 7), 7),
    ((2, 3, 7, 7), 3),
    ((3, 5, 13, 9), 4),
    ((2, 2, 3, 28), 7),
    ((2, 2, 28, 3), (2, 1)),
    ((1, 1, 1, 1), 1),
    ((5, 4, 8, 8), 1),
    ((1, 2, 5, 200), (3, 66)),
    ((1, 3, 70, 129), 35),
    ((2, 1, 64, 64), 7),
    ((4, 33, 14, 14), 5),
    ((3, 2, 17), 5),
    ((2, 2, 300), 150),
    ((1, 1, 300), 1000),
    ((2, 3, 5, 6, 7), 3),
    ((2, 2, 4, 9, 20), (4, 2, 5)),
    ((1, 2, 3, 1, 40), 2),
)


def on_cpu(function: Any, input: Tensor, *arguments: Any, **options: Any) -> Tensor:
    """A reference's result, on the device of `input`."""
    with torch.device("cpu"):
        result: Tensor = function(input.cpu(), *arguments, **options)
    return result.to(input.device)


def memory_formats(input: Tensor) -> dict[str, Tensor]:
    """The same numbers, placed in memory in several ways."""
    outer_last = input.movedim(0, -1).contiguous().movedim(-1, 0)
    with_gaps = input.new_zeros(*input.shape[:-1], 2 * input.shape[-1])[..., ::2].copy_(input)
    formats = {
        "contiguous": input,
        "channels_last": input.movedim(1, -1).contiguous().movedim(-1, 1),
        "samples_last": outer_last,
        "reversed": input.permute(*reversed(range(input.dim())))
        .contiguous()
        .permute(*reversed(range(input.dim()))),
        "with_gaps": with_gaps,
        "expanded": input[:1].expand_as(input) if input.dim() else input,
    }
    return formats


@pytest.mark.parametrize("share_channels", [False, True])
@pytest.mark.parametrize("normalize", ["batch", "sample", "none"])
@pytest.mark.parametrize(("shape", "block_size"), CASES, ids=str)
def test_matches_reference(
    shape: tuple[int, ...],
    block_size: Any,
    normalize: str,
    share_channels: bool,
    backend: torch.device,
) -> None:
    input = torch.randn(shape)
    options = {"normalize": normalize, "share_channels": share_channels, "seed": SEED}
    for p, gamma in ((0.1, "paper"), (0.6, "exact")):
        ours = FUNCTIONS[len(shape)](input, p, block_size, gamma=gamma, **options)
        expected = on_cpu(reference.drop_block, input, p, block_size, gamma=gamma, **options)
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("scale", [0.25, 1.5, 1e9, 0])
def test_gamma_scale(scale: float, backend: torch.device) -> None:
    """It multiplies the seeds' rate, which 1 limits: then all is dropped, and nothing drawn."""
    input = torch.randn(2, 3, 20, 20)
    for options in ({"gamma": "paper"}, {"gamma": "exact", "normalize": "none"}):
        scaled = drop_block2d(input, 0.3, 3, gamma_scale=scale, seed=SEED, **options)
        expected = on_cpu(
            reference.drop_block, input, 0.3, 3, gamma_scale=scale, seed=SEED, **options
        )
        assert torch.equal(scaled, expected)
    kept = drop_block2d(torch.ones(2, 3, 20, 20), 0.3, 3, gamma_scale=scale, seed=SEED) != 0
    rate = min(1.0, paper_gamma(0.3, (20, 20), (3, 3)) * scale)
    with torch.device("cpu"):
        wanted = reference.block_mask(input.shape, (3, 3), rate, SEED)
    assert torch.equal(kept.cpu(), wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share_channels", [False, True])
@pytest.mark.parametrize("shape", [(3, 4, 9, 11), (2, 5, 33), (2, 3, 4, 5, 6)], ids=str)
def test_with_noise(
    shape: tuple[int, ...], share_channels: bool, dtype: torch.dtype, backend: torch.device
) -> None:
    """Dropped elements are the noise of the same random state, and kept ones stay as they are."""
    input = torch.randn(shape, dtype=dtype)
    input.view(-1)[::7] = math.nan
    function, one_for_all = FUNCTIONS[len(shape)], {"seed": SEED, "share_channels": share_channels}
    mask_shape = (shape[0], 1 if share_channels else shape[1], *shape[2:])
    drawn_in = torch.float64 if dtype == torch.float64 else torch.float32
    noise = fused_dropout.normal_noise(mask_shape, seed=SEED, dtype=drawn_in).to(dtype)
    ones = torch.ones(shape, dtype=dtype)
    for p in (0.4, 1.0):
        kept = function(ones, p, 3, normalize="none", **one_for_all) != 0
        wanted = torch.where(kept, input, noise)
        for normalize in ("batch", "none"):
            options = {"normalize": normalize, "with_noise": True, **one_for_all}
            leaf = input.clone().requires_grad_()
            output = function(leaf, p, 3, **options)
            torch.testing.assert_close(output, wanted, rtol=0, atol=0, equal_nan=True)
            (d_input,) = torch.autograd.grad(output, leaf, ones)
            assert torch.equal(d_input, kept.to(dtype))
            written = input.clone()
            assert function(written, p, 3, inplace=True, **options) is written
            torch.testing.assert_close(written, wanted, rtol=0, atol=0, equal_nan=True)
    if dtype == torch.float64:
        plain = torch.nan_to_num(input, 0.5).requires_grad_()
        call = partial(function, p=0.4, block_size=3, with_noise=True, **one_for_all)
        assert torch.autograd.gradcheck(call, plain, check_forward_ad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(call, plain, fast_mode=True)


def test_noise_is_drawn_anew(place: torch.device) -> None:
    """From torch's generator, also where p = 1 leaves no seed to draw."""
    input = torch.zeros(2, 3, 8, 8)
    torch.manual_seed(5)
    first, second = (drop_block2d(input, 1.0, 8, with_noise=True) for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(first, DropBlock2d(1.0, 8, with_noise=True)(input))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", memory_formats(torch.zeros(1, 1, 1, 1)))
def test_dtypes_and_memory_formats(name: str, dtype: torch.dtype, backend: torch.device) -> None:
    for shape in ((3, 5, 9, 11), (2, 130, 6, 6), (2, 8, 20), (2, 3, 4, 5, 6)):
        input = memory_formats(torch.randn(shape, dtype=dtype))[name]
        like_torch = torch.empty_like(input)
        for normalize in ("batch", "sample"):
            for share_channels in (False, True):
                options = {"normalize": normalize, "share_channels": share_channels, "seed": SEED}
                ours = FUNCTIONS[len(shape)](input, 0.3, 3, **options)
                assert ours.stride() == like_torch.stride()
                assert torch.equal(ours, on_cpu(reference.drop_block, input, 0.3, 3, **options))
                if name != "expanded":
                    written = torch.empty_strided(input.shape, input.stride(), dtype=dtype)
                    written.copy_(input)
                    result = FUNCTIONS[len(shape)](written, 0.3, 3, inplace=True, **options)
                    assert result is written
                    assert torch.equal(written, ours)


def test_many_maps_are_cut_between_threads_alike(backend: torch.device) -> None:
    input = torch.randn(9, 70, 15, 15)
    expected = on_cpu(reference.drop_block, input, 0.2, 5, seed=SEED, normalize="sample")
    for count in (1, 2, 3):
        with threads(count):
            ours = drop_block2d(input, 0.2, 5, seed=SEED, normalize="sample")
            assert torch.equal(ours, expected)


def test_infinite_and_nan_inputs_do_not_leak_into_dropped_elements(backend: torch.device) -> None:
    input = torch.full((4, 4, 20, 20), math.nan)
    input[::2] = math.inf
    output = drop_block2d(input, 0.5, 3, seed=SEED)
    with torch.device("cpu"):
        kept = reference.block_mask(
            input.shape, (3, 3), paper_gamma(0.5, (20, 20), (3, 3)), SEED
        ).to(input.device)
    assert (output[~kept] == 0).all()
    assert output[kept].isnan().any() and output[kept].isinf().any()
    assert not output[kept].isfinite().any()


def test_everything_dropped_is_zero(backend: torch.device) -> None:
    for normalize in ("batch", "sample", "none"):
        for eps in (0.0, 1e-6):
            input = torch.randn(2, 3, 9, 9)
            output = drop_block2d(
                input, 1.0, 3, eps=eps, gamma="exact", normalize=normalize, seed=1
            )
            assert (output == 0).all()


def test_counts_beyond_float16(backend: torch.device) -> None:
    """100000 elements, more than float16 can count, keep their sum."""
    input = torch.ones(2, 50, 25, 40, dtype=torch.float16)
    output = drop_block2d(input, 0.2, 5, seed=3)
    assert output.isfinite().all()
    assert output.double().mean().item() == pytest.approx(1, rel=1e-3)


def test_eps_is_added_to_the_count(backend: torch.device) -> None:
    input = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    kept = (drop_block2d(input, 0.3, 3, seed=5) != 0).sum().item()
    output = drop_block2d(input, 0.3, 3, seed=5, eps=10.0)
    assert 0 < kept < 64
    assert output.max().item() == pytest.approx(64 / (kept + 10), rel=1e-12)


# ---- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", ["batch", "sample", "none"])
def test_gradients_of_all_orders(normalize: str, place: torch.device) -> None:
    input = torch.randn(2, 3, 6, 5, dtype=torch.float64, requires_grad=True)

    def function(x: Tensor) -> Tensor:
        return drop_block2d(x, 0.4, 3, seed=SEED, normalize=normalize)

    assert torch.autograd.gradcheck(function, input)
    assert torch.autograd.gradgradcheck(function, input)


@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_is_forward_on_the_gradient(dtype: torch.dtype, backend: torch.device) -> None:
    for share_channels in (False, True):
        options = {"seed": SEED, "share_channels": share_channels}
        input = torch.randn(3, 8, 19, 19, dtype=dtype, requires_grad=True)
        grad = torch.randn_like(input).contiguous(memory_format=torch.channels_last)
        output = drop_block2d(input, 0.3, 5, **options)
        (d_input,) = torch.autograd.grad(output, input, grad)
        assert torch.equal(d_input, drop_block2d(grad, 0.3, 5, **options))
        assert torch.equal(d_input == 0, output == 0)


def test_saves_one_bit_per_element(place: torch.device) -> None:
    input = torch.randn(4, 16, 32, 32, requires_grad=True)
    for share_channels, bits in ((False, input.numel()), (True, input.numel() / 16)):
        drop = partial(drop_block2d, input, 0.1, 7, share_channels=share_channels)
        assert sum(tensor.nbytes for tensor in kept_for_backward(drop)) <= bits / 8 + 64


# ---- the random state ---------------------------------------------------------------------------


def test_what_draws_nothing_leaves_the_generator(place: torch.device) -> None:
    input, empty = torch.randn(2, 3, 8, 8), torch.randn(0, 3, 8, 8)
    before = generator_state(place)
    assert drop_block2d(input, 0.0, 3) is input
    assert drop_block2d(input, 0.3, 3, training=False) is input
    drop_block2d(input, 1.0, 3, gamma="exact")
    drop_block2d(input, 0.3, 3, seed=1)
    assert drop_block2d(empty, 0.3, 3) is empty
    assert torch.equal(before, generator_state(place))


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 0, 8, 8), (2, 3, 0, 8), (2, 3, 8, 0)])
def test_empty_inputs(shape: tuple[int, ...], place: torch.device) -> None:
    input = torch.randn(shape, requires_grad=True)
    for options in (
        {},
        {"normalize": "sample"},
        {"share_channels": True, "gamma": "exact"},
        {"with_noise": True},
    ):
        output = drop_block2d(input, 0.5, 3, **options)
        assert output.shape == shape
        torch.autograd.grad(output.sum(), input)


# ---- statistics ---------------------------------------------------------------------------------

# Every test below has a fixed seed, so it either passes or fails for good. Its bounds are 6
# standard deviations wide: fresh seeds would fail one comparison in 5e8.
SIGMAS = 6


def dropped(shape: tuple[int, ...], p: float, block: int, **options: Any) -> Tensor:
    output = FUNCTIONS[len(shape)](torch.ones(shape), p, block, seed=SEED, **options)
    return (output == 0).double()


@pytest.mark.parametrize(("size", "block"), [(7, 7), (7, 3), (14, 7), (20, 4)])
def test_realised_rate(size: int, block: int, backend: torch.device) -> None:
    rates = dropped((500, 8, size, size), 0.1, block, gamma="exact").mean((2, 3)).flatten()
    error = SIGMAS * rates.std() / math.sqrt(rates.numel())
    assert abs(rates.mean() - 0.1) < error
    assert error < 0.03  # tight enough to tell 0.1 from what edges and overlaps would make of it


@pytest.mark.parametrize("share_channels", [False, True])
def test_samples_and_channels_are_independent(share_channels: bool, backend: torch.device) -> None:
    drops = dropped((64, 32, 10, 10), 0.2, 3, gamma="exact", share_channels=share_channels)
    maps = drops.mean((2, 3)) - 0.2  # [N, C]
    count = 64 * 31
    if share_channels:
        assert torch.equal(drops, drops[:, :1].expand_as(drops))
        maps, count = maps[:, :1], 63
    else:
        products = maps[:, 1:] * maps[:, :-1]
        assert abs(products.mean()) < SIGMAS * products.std() / math.sqrt(count)
    products = maps[1:] * maps[:-1]
    assert abs(products.mean()) < SIGMAS * products.std() / math.sqrt(products.numel())


def test_neighbours_depend_on_each_other_within_a_block_only(backend: torch.device) -> None:
    block, size = 4, 24
    drops = dropped((2000, 1, size, size), 0.2, block, gamma="exact")[:, 0]
    row = drops[:, size // 2] - drops[:, size // 2].mean(0)
    centre = size // 2
    for distance in range(1, 9):
        products = row[:, centre] * row[:, centre + distance]
        bound = SIGMAS * products.std() / math.sqrt(products.numel())
        if distance < block:
            assert products.mean() > bound
        else:
            assert abs(products.mean()) < bound


def test_seeds_follow_their_gamma(backend: torch.device) -> None:
    """With blocks of one element the mask is the seeds' own."""
    gamma = exact_gamma(0.003, (40, 40), (1, 1))
    drops = dropped((50, 20, 40, 40), 0.003, 1)
    assert gamma == pytest.approx(0.003)
    deviation = math.sqrt(gamma * (1 - gamma) / drops.numel())
    assert abs(drops.mean().item() - gamma) < SIGMAS * deviation
