"""The mask: exact bits against the golden file and the reference, statistics, arguments."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from support.devices import threads
from support.golden import GoldenMask, golden_masks, philox_known_answers

import fused_dropout
from fused_dropout import reference
from fused_dropout._core import extension

EDGE_COLS = (0, 1, 15, 16, 17, 31, 32, 33, 127, 128, 129, 4095, 4096, 4097)


@pytest.mark.parametrize(("counter", "key", "result"), philox_known_answers())
def test_reference_philox_gives_the_known_answers(
    counter: list[int], key: list[int], result: list[int]
) -> None:
    words = reference.philox4x32_10(np.array(counter, dtype=np.uint32), key)
    assert words.tolist() == result


@pytest.mark.parametrize("golden", golden_masks(), ids=str)
def test_reference_matches_golden(golden: GoldenMask) -> None:
    kept = reference.mask_matrix(
        golden.rows,
        golden.cols,
        golden.p,
        golden.seed,
        golden.offset,
        golden.stream,
        golden.digits,
    )
    padded = np.pad(kept, ((0, 0), (0, -golden.cols % 32)))
    words = np.packbits(padded, axis=1, bitorder="little").view("<u4")
    assert words.tolist() == golden.words


@pytest.mark.parametrize("golden", golden_masks(), ids=str)
def test_kernels_match_golden(golden: GoldenMask, backend: torch.device) -> None:
    shape = (golden.rows, golden.cols)
    rest = {"offset": golden.offset, "stream": golden.stream, "digits": golden.digits}
    packed = fused_dropout.packed_mask(shape, golden.p, seed=golden.seed, **rest)
    assert packed.dtype == torch.uint32
    assert packed.device == backend
    assert packed.cpu().numpy().tolist() == golden.words
    mask = fused_dropout.mask(shape, golden.p, seed=golden.seed, **rest)
    assert torch.equal(mask, reference.mask(shape, golden.p, seed=golden.seed, **rest))


@pytest.mark.parametrize("cols", EDGE_COLS)
@pytest.mark.parametrize("p", [0.0, 1e-9, 0.1, 0.3, 0.5, 0.75, 1 - 2**-16, 1.0])
def test_kernels_match_reference_at_edge_sizes(cols: int, p: float, backend: torch.device) -> None:
    for rows in (0, 1, 3):
        mask = fused_dropout.mask((rows, cols), p, seed=cols)
        assert mask.shape == (rows, cols)
        assert torch.equal(mask, reference.mask((rows, cols), p, seed=cols))


# The fixture changes nothing between examples.
@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shape=st.lists(st.integers(0, 9), max_size=3).map(tuple),
    last=st.integers(0, 700),
    p=st.floats(0, 1),
    seed=st.integers(-(2**63), 2**64 - 1),
    offset=st.integers(-(2**63), 2**64 - 1),
    stream=st.integers(0, 127),
    digits=st.integers(1, 32),
)
def test_kernels_match_reference_anywhere(
    shape: tuple[int, ...],
    last: int,
    p: float,
    seed: int,
    offset: int,
    stream: int,
    digits: int,
    backend: torch.device,
) -> None:
    keys = {"seed": seed, "offset": offset, "stream": stream, "digits": digits}
    mask = fused_dropout.mask((*shape, last), p, **keys)
    packed = fused_dropout.packed_mask((*shape, last), p, **keys)
    expected = reference.mask((*shape, last), p, **keys)
    assert torch.equal(mask, expected)
    assert packed.shape == (*shape, -(-last // 32))
    bits = np.unpackbits(
        packed.cpu().numpy().astype("<u4").view(np.uint8), axis=-1, bitorder="little"
    ).astype(bool)
    assert np.array_equal(bits[..., :last], expected.cpu().numpy())
    assert not bits[..., last:].any()


@pytest.mark.parametrize(("halves", "threshold"), [(1, 0), (3, 2), (5, 2), (7, 4)])
def test_ties_of_the_threshold_go_to_even(
    halves: int, threshold: int, backend: torch.device
) -> None:
    """At (1 - p) 2^16 = 0.5, 1.5, 2.5 and 3.5, all of them exact."""
    size = 2**20  # of which 16 T are kept
    p = 1 - halves / 2**17
    kept = fused_dropout.mask(size, p, seed=3)
    assert reference.threshold(p) == threshold
    assert torch.equal(kept, reference.mask(size, p, seed=3))
    assert torch.equal(kept, fused_dropout.mask(size, 1 - threshold / 2**16, seed=3))
    for other in (threshold - 1, threshold + 1):
        if other >= 0:
            assert not torch.equal(kept, fused_dropout.mask(size, 1 - other / 2**16, seed=3))


def test_long_row_and_many_rows_match_reference(backend: torch.device) -> None:
    # Long enough to be cut between threads or blocks, in the middle of a row and between rows.
    for shape in ((2, 300_001), (5_000, 130)):
        assert torch.equal(
            fused_dropout.mask(shape, 0.3, seed=5), reference.mask(shape, 0.3, seed=5)
        )


def test_mask_does_not_depend_on_threads() -> None:
    masks = []
    for count in (1, 2, 3):
        with threads(count):
            masks.append(fused_dropout.mask((37, 100_000), 0.1, seed=3))
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


def test_scalar_shapes(place: torch.device) -> None:
    assert fused_dropout.mask((), 0.5, seed=0).shape == ()
    assert torch.equal(fused_dropout.mask(40, 0.5, seed=0), fused_dropout.mask((40,), 0.5, seed=0))
    assert fused_dropout.packed_mask((), 0.5, seed=0).shape == (1,)


def test_seeds_are_modulo_two_to_the_64(place: torch.device) -> None:
    assert torch.equal(
        fused_dropout.mask(999, 0.5, seed=-1), fused_dropout.mask(999, 0.5, seed=2**64 - 1)
    )


def test_tensors_are_made_where_torch_s_factories_make_them(place: torch.device) -> None:
    makers = (
        partial(fused_dropout.mask, 5, 0.5, seed=0),
        partial(fused_dropout.packed_mask, 5, 0.5, seed=0),
        partial(fused_dropout.make_rng_state, 0),
    )
    for make in makers:
        assert make().device == place
        assert make(device="cpu").device == torch.device("cpu")
        assert make(device="meta").is_meta
        with torch.device("meta"):
            assert make().is_meta
            assert make(device=place).device == place


# Each z below is a standard normal under the contract; all of them together raise a false alarm
# with probability below 1e-6: 4 p x 5 statistics, two-sided, |z| < 5.6 has 2.1e-8 each.
Z_LIMIT = 5.6


@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_statistics(p: float, place: torch.device) -> None:
    rows, cols = 2_000, 1_000
    q = reference.keep_rate(p)
    kept = fused_dropout.mask((rows, cols), p, seed=2026).double()
    centred = (kept - q) / math.sqrt(q * (1 - q))
    other = (fused_dropout.mask((rows, cols), p, seed=2026, stream=1).double() - q) / math.sqrt(
        q * (1 - q)
    )

    def z(products: torch.Tensor) -> float:
        return float(products.sum()) / math.sqrt(products.numel())

    assert abs(z(centred)) < Z_LIMIT, "keep rate"
    assert abs(z(centred[:, 1:] * centred[:, :-1])) < Z_LIMIT, "neighbours in a row"
    assert abs(z(centred[1:] * centred[:-1])) < Z_LIMIT, "neighbours in a column"
    assert abs(z(centred[:, 128:] * centred[:, :-128])) < Z_LIMIT, "neighbouring groups"
    assert abs(z(centred * other)) < Z_LIMIT, "streams"


@pytest.mark.parametrize(
    ("kwargs", "error", "text"),
    [
        ({"p": -0.1}, ValueError, "p, the drop probability.*-0.1"),
        ({"p": 1.5}, ValueError, "1.5"),
        ({"p": math.nan}, ValueError, "nan"),
        ({"p": "half"}, TypeError, "p must be a float, got str"),
        ({"p": 10**400}, ValueError, "between 0 and 1, but got an int of more than 30 digits"),
        ({"p": -(10**400)}, ValueError, "between 0 and 1, but got an int of more than 30 digits"),
        ({"seed": 2**64}, ValueError, "seed must be in"),
        ({"seed": 0.5}, TypeError, "seed must be an int, got float"),
        ({"offset": -(2**63) - 1}, ValueError, "offset must be in"),
        ({"stream": 128}, ValueError, r"stream must be in \[0, 127\], got 128"),
        ({"digits": 0}, ValueError, r"digits must be in \[1, 32\], got 0"),
        ({"digits": 33}, ValueError, "got 33"),
        ({"shape": (3, -1)}, ValueError, r"shape must be ints >= 0, .*got \(3, -1\)"),
        ({"shape": (2**40, 2**22)}, ValueError, "at most 2\\^48 groups"),
        ({"shape": (2**64,)}, ValueError, "below 2\\^63, got"),
        ({"shape": (2**40, 2**40)}, ValueError, "below 2\\^63, got"),
        ({"shape": (2**20, 2**20, 2**20, 2**20, 0)}, ValueError, "below 2\\^63, got"),
        ({"shape": 3.0}, TypeError, "shape must be an int or a sequence of ints, got 3.0"),
        ({"shape": None}, TypeError, "got None"),
        ({"shape": (3, 4.5)}, TypeError, r"got \(3, 4.5\)"),
        ({"device": "xpu"}, RuntimeError, "kernels for cpu and cuda tensors, got xpu"),
    ],
)
def test_bad_arguments(
    kwargs: dict, error: type[Exception], text: str, place: torch.device
) -> None:
    arguments = {"shape": (3, 4), "p": 0.5, "seed": 0, **kwargs}
    for draw in (fused_dropout.mask, fused_dropout.packed_mask):
        with pytest.raises(error, match=text):
            draw(**arguments)


SHAPES = [
    (7, (7,)),
    (np.int64(7), (7,)),
    (np.array([2, 3]), (2, 3)),
    ([2, np.int32(3)], (2, 3)),
    (torch.Size([2, 3]), (2, 3)),
    (range(2, 4), (2, 3)),
    (torch.tensor([2, 3]), (2, 3)),
    ((), ()),
]


@pytest.mark.parametrize(("shape", "expected"), SHAPES, ids=str)
def test_masks_and_noise_take_the_same_shapes(shape: Any, expected: tuple[int, ...]) -> None:
    assert fused_dropout.mask(shape, 0.5, seed=0).shape == expected
    assert fused_dropout.uniform_noise(shape, seed=0).shape == expected
    assert fused_dropout.normal_noise(shape, seed=0).shape == expected


@pytest.mark.skipif(bool(extension.build_info()["cuda"]), reason="this build has CUDA kernels")
def test_cuda_on_a_build_without_it() -> None:
    for draw in (fused_dropout.mask, fused_dropout.packed_mask):
        with pytest.raises(RuntimeError, match="without CUDA kernels"):
            draw((3, 4), 0.5, seed=0, device="cuda")
