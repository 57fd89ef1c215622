"""Continuous noise: its bits, its accuracy, its statistics. See csrc/common/noise.h."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest
import torch
from support.compiling import shared_library
from support.devices import threads
from support.noise_checks import (
    SIZES,
    check_distribution,
    check_independent,
    check_neighbours,
    check_normal,
    ulps_from,
)
from support.paths import ROOT

import fused_dropout
from fused_dropout._core import extension
from fused_dropout.reference import _noise as reference

STATES = ((0, 0), (2**32 + 1, 2**40 + 3), (-1, 2**64 - 1))
LARGE = 1 << 19
NORMAL_ULPS = 4  # what csrc/common/noise.h promises


@pytest.mark.parametrize(("seed", "offset"), STATES)
def test_uniforms_are_the_contract_s(seed: int, offset: int, backend: torch.device) -> None:
    for size in (0, *SIZES):
        expected = reference.uniform_noise((size,), seed=seed, offset=offset, device=backend)
        for dtype in (torch.float32, torch.float64):
            drawn = fused_dropout.uniform_noise(size, seed=seed, offset=offset, dtype=dtype)
            assert drawn.dtype == dtype
            assert torch.equal(drawn.double(), expected)


def test_known_words() -> None:
    """The first calls with key 0, worked out in Python's own integers."""
    counters = [[g, 1 << 31 | 2 << 24, 0, 0] for g in range(2)]
    words = np.concatenate([numpy_philox(counter) for counter in counters])
    assert np.array_equal(reference.noise_words(8, 0), words)
    expected = ((words >> 9) + 0.5) / 2**23
    assert fused_dropout.uniform_noise(8, seed=0).tolist() == expected.tolist()


def numpy_philox(counter: list[int]) -> np.ndarray:
    """Philox4x32-10 with key 0 in plain Python ints."""
    c, k = list(counter), [0, 0]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ k[0], b % 2**32, a >> 32 ^ c[3] ^ k[1], a % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return np.array(c, dtype=np.uint32)


@pytest.mark.parametrize(("seed", "offset"), STATES)
def test_normals_match_the_reference(seed: int, offset: int, backend: torch.device) -> None:
    for size in SIZES:
        expected = reference.normal_noise((size,), seed=seed, offset=offset, device=backend)
        keys = {"seed": seed, "offset": offset}
        assert ulps_from(fused_dropout.normal_noise(size, **keys), expected) <= NORMAL_ULPS
        in_double = fused_dropout.normal_noise(size, **keys, dtype=torch.float64)
        torch.testing.assert_close(
            in_double, expected, rtol=8 * torch.finfo(torch.float64).eps, atol=0
        )


def test_normals_of_half_a_million_words(backend: torch.device) -> None:
    expected = reference.normal_noise((LARGE,), seed=9, device=backend)
    assert ulps_from(fused_dropout.normal_noise(LARGE, seed=9), expected) <= NORMAL_ULPS
    assert expected.abs().max() <= math.sqrt(2 * 24 * math.log(2))


def test_shapes_count_in_row_major_order(place: torch.device) -> None:
    for draw in (fused_dropout.uniform_noise, fused_dropout.normal_noise):
        assert torch.equal(draw((3, 5, 7), seed=1).flatten(), draw(105, seed=1))
        assert draw((), seed=1).shape == ()
        assert draw((4, 0), seed=1).shape == (4, 0)
        assert draw(9, seed=1).device == place


def test_noise_does_not_depend_on_threads(isa: str) -> None:
    drawn = fused_dropout.normal_noise(50_000, seed=1)
    for count in (1, 3, 7):
        with threads(count):
            assert torch.equal(fused_dropout.normal_noise(50_000, seed=1), drawn)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"size": -1}, ValueError, "size must be ints >= 0, .* got -1"),
        ({"size": 2**64}, ValueError, "their product below 2.63, got 18446744073709551616"),
        ({"size": (2**40, 2**40)}, ValueError, "their product below 2.63"),
        ({"size": 1.5}, TypeError, "size must be an int or a sequence of ints, got 1.5"),
        ({"size": (2, None)}, TypeError, "size must be an int or a sequence of ints, got .2, None"),
        ({"dtype": torch.bfloat16}, TypeError, "dtype must be torch.float32 or torch.float64"),
        ({"seed": 2**65}, ValueError, f"got {2**65}"),
        ({"seed": 1.0}, TypeError, "seed must be an int"),
        ({"device": "xpu"}, RuntimeError, "kernels for cpu and cuda"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], text: str) -> None:
    for draw in (fused_dropout.uniform_noise, fused_dropout.normal_noise):
        with pytest.raises(error, match=text):
            draw(**{"size": 4, "seed": 1, **change})


def test_raw_operators_never_crash(place: torch.device) -> None:
    ops = extension.operators()
    state = fused_dropout.make_rng_state(1)
    with pytest.raises(TypeError, match="float32 or float64"):
        ops.uniform_noise(state, [4], torch.bfloat16)
    with pytest.raises(ValueError, match="size must be at least 0"):
        ops.normal_noise(state, [4, -1], torch.float32)
    with pytest.raises(RuntimeError, match="rng_state must be"):
        ops.normal_noise(state[:1], [4], torch.float32)


# ---- statistics, on every backend: false alarms below 1e-4 for this file


def test_uniforms_are_uniform_and_independent(backend: torch.device) -> None:
    u = fused_dropout.uniform_noise(LARGE, seed=11).double()
    assert u.min() > 0 and u.max() < 1
    check_distribution(u, lambda x: x)
    centred = (u - 0.5) * math.sqrt(12)
    check_neighbours(centred)
    for other in ({"seed": 12}, {"seed": 11, "offset": 1}):
        v = fused_dropout.uniform_noise(LARGE, **other).double()
        check_independent(centred, (v - 0.5) * math.sqrt(12))


def test_normals_are_normal_and_independent(backend: torch.device) -> None:
    z = fused_dropout.normal_noise(LARGE, seed=11)
    check_normal(z)
    check_neighbours(z)
    for k in range(4):  # each place of a call by itself
        check_normal(z[k::4])
    check_independent(z, fused_dropout.normal_noise(LARGE, seed=12))


def test_noise_has_nothing_to_do_with_masks_of_its_seed(place: torch.device) -> None:
    kept = fused_dropout.mask(LARGE, 0.5, seed=11).double() * 2 - 1
    check_independent_of_signs(fused_dropout.normal_noise(LARGE, seed=11).double(), kept)


def check_independent_of_signs(z: torch.Tensor, signs: torch.Tensor) -> None:
    bound = 5 / math.sqrt(len(z))
    assert abs((z * signs).mean().item()) <= bound
    assert abs(((z * z - 1) * signs).mean().item()) <= math.sqrt(2) * bound


# ---- the functions underneath, through all their arguments

SOURCE = """
#include <cmath>
#include "simd_plain.h"
#include "noise_body.h"
using namespace fused_dropout;
extern "C" void logs(int64_t count, const float* x, float* out) {
  for (int64_t k = 0; k < count; ++k) out[k] = log_of(x[k]);
}
extern "C" void exps(int64_t count, const float* x, float* out) {
  for (int64_t k = 0; k < count; ++k) out[k] = exp_of(x[k]);
}
extern "C" void sines(int64_t count, const float* x, float* out) {
  for (int64_t k = 0; k < count; ++k) out[k] = sine_of_turn(x[k]);
}
extern "C" void cosines(int64_t count, const float* x, float* out) {
  for (int64_t k = 0; k < count; ++k) out[k] = cosine_of_turn(x[k]);
}
extern "C" void words(uint64_t seed, uint64_t block, uint32_t* out) {
  const MaskRule rule = make_noise_rule(seed, 0);
  draw_words(rule, philox_keys<Lanes>(rule.key[0], rule.key[1], splat), block, out);
}
"""
CPU = ROOT / "csrc" / "cpu"
ALL_STEPS = (np.arange(2**23) + 0.5) * 2.0**-23  # every uniform


@pytest.fixture(scope="module", params=["separate", "fused"])
def library(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> ctypes.CDLL:
    """csrc/cpu/elementary.h, its multiply-adds rounded twice or once as the compiler chooses."""
    flags = ["-ffp-contract=off"]
    if request.param == "fused":
        if "avx2" not in extension.available_isas():
            pytest.skip("this processor has no fused multiply-add")
        flags = ["-ffp-contract=fast", "-mavx2", "-mfma"]
    folder = tmp_path_factory.mktemp("elementary")
    return shared_library(SOURCE, folder, "-O3", f"-I{CPU}", *flags)


def worst_ulps(library: ctypes.CDLL, name: str, x: np.ndarray, truth: np.ndarray) -> float:
    x = np.ascontiguousarray(x, np.float32)
    out = np.full_like(x, np.nan)
    pointers = (array.ctypes.data_as(ctypes.c_void_p) for array in (x, out))
    getattr(library, name)(ctypes.c_int64(len(x)), *pointers)
    return ulps_from(torch.from_numpy(out), torch.from_numpy(truth))


def test_logarithm(library: ctypes.CDLL) -> None:
    assert worst_ulps(library, "logs", ALL_STEPS, np.log(ALL_STEPS)) <= 2
    # Concrete dropout takes it of u / (1 - u), rounded.
    odds = (ALL_STEPS / (1 - ALL_STEPS)).astype(np.float32).astype(np.float64)
    assert worst_ulps(library, "logs", odds, np.log(odds)) <= 2


def test_sine_and_cosine(library: ctypes.CDLL) -> None:
    t = (np.arange(-(2**20), 2**20) + 0.5) * 2.0**-23  # every rest of a turn
    assert worst_ulps(library, "sines", t, np.sin(2 * np.pi * t)) <= 2
    assert worst_ulps(library, "cosines", t, np.cos(2 * np.pi * t)) <= 2


def test_exponential(library: ctypes.CDLL) -> None:
    x = np.linspace(-87, 87, 2**22).astype(np.float32).astype(np.float64)
    assert worst_ulps(library, "exps", x, np.exp(x)) <= 2
    beyond = np.array([-1e30, -88, 88, 1e30, -np.inf, np.inf])
    assert worst_ulps(library, "exps", beyond, np.exp(np.clip(beyond, -87, 87))) <= 2
    out = np.zeros(1, np.float32)
    nan = np.full(1, np.nan, np.float32)
    pointers = (array.ctypes.data_as(ctypes.c_void_p) for array in (nan, out))
    library.exps(ctypes.c_int64(1), *pointers)
    assert np.isnan(out[0])


@pytest.mark.parametrize("block", [0, 2**27 - 1, 2**27, 2**43 - 1])
def test_calls_past_32_bits(library: ctypes.CDLL, block: int) -> None:
    """Blocks of 32 calls; a tensor with as many elements would not fit in memory."""
    out = (ctypes.c_uint32 * 128)()
    library.words(ctypes.c_uint64(3), ctypes.c_uint64(block), out)
    assert list(out) == reference.noise_words(128, 3, first=128 * block).tolist()
