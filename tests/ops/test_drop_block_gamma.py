"""The rate of DropBlock's seeds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import fused_dropout
from fused_dropout._core import extension
from fused_dropout._core.drop_block_gamma import exact_gamma, expected_drop_rate, paper_gamma


def counted_rate(gamma: float, sizes: tuple[int, ...], block: tuple[int, ...]) -> float:
    """The expected rate, with the seeds that reach each element counted one by one."""
    rates = []
    for element in np.ndindex(*sizes):
        seeds = 1
        for position, size, side in zip(element, sizes, block, strict=True):
            seeds *= sum(s <= position < s + side for s in range(size - side + 1))
        rates.append(1 - (1 - gamma) ** seeds)
    return float(np.mean(rates))


@pytest.mark.parametrize(
    ("sizes", "block"),
    [((9,), (4,)), ((7, 7), (7, 7)), ((8, 11), (3, 2)), ((5, 1), (2, 1)), ((4, 5, 6), (2, 3, 3))],
)
def test_expected_rate_counts_edges_and_overlaps(
    sizes: tuple[int, ...], block: tuple[int, ...]
) -> None:
    for gamma in (1e-6, 0.01, 0.3, 1.0):
        assert expected_drop_rate(gamma, sizes, block) == pytest.approx(
            counted_rate(gamma, sizes, block), rel=1e-9
        )


@pytest.mark.parametrize("p", [1e-4, 0.05, 0.1, 0.5, 0.95])
def test_exact_gamma_gives_p(p: float) -> None:
    for size, block in itertools.product((7, 14, 28, 56), (3, 5, 7)):
        gamma = exact_gamma(p, (size, size), (block, block))
        assert expected_drop_rate(gamma, (size, size), (block, block)) == pytest.approx(
            p, rel=1e-12
        )


def test_exact_gamma_at_the_ends() -> None:
    assert exact_gamma(0.0, (7, 7), (3, 3)) == 0
    assert exact_gamma(1.0, (7, 7), (3, 3)) == 1
    assert exact_gamma(0.2, (7,), (7,)) == pytest.approx(0.2, rel=1e-15)


def test_paper_gamma_is_the_paper_s_formula() -> None:
    assert paper_gamma(0.1, (56, 28), (7, 5)) == pytest.approx(
        0.1 * 56 * 28 / (7 * 5 * (56 - 7 + 1) * (28 - 5 + 1)), rel=1e-15
    )
    for size, block in itertools.product(range(1, 30), repeat=2):
        if block <= size:
            assert 0 < paper_gamma(1.0, (size,), (block,)) <= 1


@pytest.mark.parametrize("size", [7, 14, 28, 56])
def test_realised_rate_within_one_percent(size: int) -> None:
    """Of masks really drawn: with the exact gamma, but not with the paper's.

    At this many elements 1 % is 6 standard deviations, were the elements of a block one.
    """
    p, block, elements = 0.1, (7, 7), 180_000_000
    sizes = (size, size)
    input = torch.empty(1, 1, 1, 1).expand(elements // size**2, 1, *sizes)
    rates = []
    for gamma in (exact_gamma(p, sizes, block), paper_gamma(p, sizes, block)):
        state = fused_dropout.make_rng_state(12)
        draw = extension.operators().drop_block_mask
        _, scale = draw(input, state, block, gamma, False, 1, 0.0)
        rates.append(1 - 1 / scale.item())
    assert rates[0] == pytest.approx(p, rel=0.01)
    assert rates[1] == pytest.approx(p, rel=0.01) if size == 7 else rates[1] < 0.97 * p
