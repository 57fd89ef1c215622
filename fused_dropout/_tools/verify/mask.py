"""Checks of the mask itself: known answers, exact bits against the reference, statistics."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch

import fused_dropout
from fused_dropout import reference
from fused_dropout._tools.verify.checks import Check, Outcome, Settings, Target
from fused_dropout._tools.verify.statistics import (
    chi_square_z,
    one_per_device,
    statistical_outcome,
)

# Philox4x32, 10 rounds, from Random123's kat_vectors: counter, key, result.
_PHILOX_ANSWERS = (
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
)  # fmt: skip

_SHAPES = (
    (0,), (0, 5), (3, 0), (1,), (5, 1), (3, 31), (32,), (2, 3, 33), (7, 127), (5, 128), (4, 129),
    (2, 1000), (3, 1025), (64, 130),
)  # fmt: skip
_LARGE_SHAPES = ((3, 1_000_001), (30_001, 130))
_PS = (0.0, 1e-9, 2.0**-15, 0.1, 0.25, 0.3, 0.5, 0.9, 1.0)
_DIGITS = (8, 16, 32)
_STATES = (  # seed, offset, stream
    (0, 0, 0),
    (42, 8, 1),
    (2**32 + 1, 2**32 + 4, 5),
    (2**64 - 1, 2**64 - 1, 127),
    (-1, 2**63, 2),
)


@dataclass(frozen=True)
class _Case:
    shape: tuple[int, ...]
    p: float
    digits: int
    seed: int
    offset: int
    stream: int

    def keywords(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "offset": self.offset,
            "stream": self.stream,
            "digits": self.digits,
        }


def mask_checks(settings: Settings) -> Iterator[Check]:
    """Every check of `philox`, `mask` and `packed_mask`."""
    yield Check("philox", "known answers", "reference", "-", _philox_known_answers)
    cases = _cases(settings)
    for target in settings.targets:
        bits = partial(_bits_agree, target, cases)
        yield Check("mask", "bits = reference", target.name, "-", bits)
        words = partial(_packed_words_agree, target, cases)
        yield Check("packed_mask", "words = reference", target.name, "-", words)
        if target.device != "cpu":
            large = partial(_large_masks_agree, target, settings.seed)
            yield Check("mask", "bits = CPU's, large", target.name, "-", large)
    # Every CPU ISA draws the same bits (checked above), so one of them stands for all.
    for target in one_per_device(settings.targets):
        for what, statistic in (
            ("keep rate", _keep_rate_z),
            ("rows and columns independent", _independence_z),
            ("seeds, offsets, streams independent", _states_z),
        ):
            run = partial(statistical_outcome, partial(statistic, target, settings))
            yield Check("mask", what, target.name, "-", run)


def _philox_known_answers() -> Outcome:
    outcome = Outcome()
    for counter, key, answer in _PHILOX_ANSWERS:
        words = np.array(_words(counter), dtype=np.uint32)
        got = reference.philox4x32_10(words, _words(key))
        outcome.add_exact(got.tolist() == _words(answer), f"counter {counter}, key {key}")
    return outcome


def _words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def _cases(settings: Settings) -> list[_Case]:
    states = (*_STATES, (settings.seed, 4, 3))
    per_shape = 1 if settings.quick else len(states)
    next_states = itertools.cycle(states)
    return [
        _Case(shape, p, digits, *state)
        for shape, p, digits in itertools.product(_SHAPES, _PS, _DIGITS)
        for state in itertools.islice(next_states, per_shape)
    ]


@cache
def _reference_bits(case: _Case) -> torch.Tensor:
    return reference.mask(case.shape, case.p, **case.keywords())


def _bits_agree(target: Target, cases: Sequence[_Case]) -> Outcome:
    outcome = Outcome()
    with target.active():
        for case in cases:
            got = fused_dropout.mask(case.shape, case.p, device=target.device, **case.keywords())
            outcome.add_exact(torch.equal(got.cpu(), _reference_bits(case)), case)
    return outcome


def _packed_words_agree(target: Target, cases: Sequence[_Case]) -> Outcome:
    outcome = Outcome()
    with target.active():
        for case in cases:
            got = fused_dropout.packed_mask(
                case.shape, case.p, device=target.device, **case.keywords()
            )
            expected = pack(_reference_bits(case).numpy())
            outcome.add_exact(np.array_equal(got.cpu().numpy(), expected), case)
    return outcome


def _large_masks_agree(target: Target, seed: int) -> Outcome:
    """With the CPU kernels, which draw in no time what the reference would take minutes for."""
    outcome = Outcome()
    for shape, p in itertools.product(_LARGE_SHAPES, (0.5, 0.25, 0.3)):
        here = fused_dropout.mask(shape, p, seed=seed, device="cpu")
        with target.active():
            there = fused_dropout.mask(shape, p, seed=seed, device=target.device)
        outcome.add_exact(torch.equal(there.cpu(), here), f"shape={shape}, p={p}")
    return outcome


def pack(bits: np.ndarray) -> np.ndarray:
    """Bool [..., cols] to uint32 [..., ceil(cols / 32)]: bit 0 first, tail bits 0."""
    *leading, cols = bits.shape
    words = -(-cols // 32)
    padded = np.zeros((*leading, words * 32), dtype=bool)
    padded[..., :cols] = bits
    weights = np.left_shift(np.uint32(1), np.arange(32, dtype=np.uint32))
    terms: np.ndarray = padded.reshape(*leading, words, 32) * weights
    return np.asarray(terms.sum(axis=-1, dtype=np.uint32))


_Scores = list[tuple[str, float]]


def _centred(
    target: Target, settings: Settings, p: float, *, seed: int = 0, offset: int = 0, stream: int = 0
) -> tuple[torch.Tensor, float]:
    """Mask minus its keep rate q, [rows, cols] float64, and q."""
    shape = (512 if settings.quick else 2048, 1000)
    with target.active():
        kept = fused_dropout.mask(
            shape, p, seed=settings.seed + seed, offset=offset, stream=stream, device=target.device
        )
    q = reference.keep_rate(p)
    return kept.cpu().double() - q, q


def _keep_rate_z(target: Target, settings: Settings) -> _Scores:
    scores = []
    for p in (2.0**-10, 0.1, 0.25, 0.3, 0.5, 0.9):
        centred, q = _centred(target, settings, p)
        deviation = math.sqrt(centred.numel() * q * (1 - q))
        scores.append((f"p={p}", float(centred.sum()) / deviation))
    return scores


def _independence_z(target: Target, settings: Settings) -> _Scores:
    scores = []
    for p in (0.1, 0.25, 0.5, 0.9):
        centred, q = _centred(target, settings, p)
        variance = q * (1 - q)
        for name, dim in (("row", 1), ("column", 0)):
            sums = centred.sum(dim)
            chi_square = float(sums.square().sum()) / (centred.shape[dim] * variance)
            scores.append((f"p={p}, {name} sums", chi_square_z(chi_square, sums.numel())))
        for name, dim, lag in (
            ("columns", 1, 1),
            ("columns", 1, 32),
            ("columns", 1, 128),
            ("rows", 0, 1),
        ):
            kept = centred.shape[dim] - lag
            left, right = centred.narrow(dim, 0, kept), centred.narrow(dim, lag, kept)
            scores.append((f"p={p}, {name} {lag} apart", _correlation_z(left, right, variance)))
    return scores


def _states_z(target: Target, settings: Settings) -> _Scores:
    scores = []
    for p in (0.1, 0.5):
        centred, q = _centred(target, settings, p)
        for name in ("seed", "offset", "stream"):
            other, _ = _centred(target, settings, p, **{name: 1})
            z = _correlation_z(centred, other, q * (1 - q))
            scores.append((f"p={p}, {name} and {name} + 1", z))
    return scores


def _correlation_z(left: torch.Tensor, right: torch.Tensor, variance: float) -> float:
    return float((left * right).sum()) / (math.sqrt(left.numel()) * variance)
