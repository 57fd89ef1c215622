"""Where masks come from: torch's generators, seed=, rng_state=."""

from __future__ import annotations

import pytest
import torch

import fused_dropout
from fused_dropout.functional import dropconnect_linear
from fused_dropout.rng import draw_rng_state

INPUT, WEIGHT = torch.ones(6, 50), torch.ones(9, 50)


def draw(**kwargs) -> torch.Tensor:
    return dropconnect_linear(INPUT, WEIGHT, None, 0.5, **kwargs)


def test_manual_seed_repeats_and_each_call_differs() -> None:
    torch.manual_seed(1)
    first, second = draw(), draw()
    torch.manual_seed(1)
    assert torch.equal(draw(), first)
    assert torch.equal(draw(), second)
    assert not torch.equal(first, second)


def test_generator_repeats_and_leaves_the_default_one_alone() -> None:
    torch.manual_seed(2)
    before = torch.get_rng_state()
    a = draw(generator=torch.Generator().manual_seed(7))
    b = draw(generator=torch.Generator().manual_seed(7))
    assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before)


def test_seed_and_rng_state_are_pure() -> None:
    before = torch.get_rng_state()
    assert torch.equal(draw(seed=3), draw(seed=3))
    assert torch.equal(draw(seed=3), draw(rng_state=fused_dropout.make_rng_state(3)))
    assert not torch.equal(draw(seed=3), draw(seed=4))
    assert not torch.equal(draw(seed=3), draw(rng_state=fused_dropout.make_rng_state(3, 1)))
    assert torch.equal(torch.get_rng_state(), before)


def test_backward_uses_the_forward_s_mask() -> None:
    """With unit operands, the output counts the kept connections, and so do the gradients."""
    input, weight = INPUT.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
    for storage in ("regenerate", "packed"):
        output = dropconnect_linear(input, weight, None, 0.3, mask_storage=storage)
        d_input, d_weight = torch.autograd.grad(output.sum(), (input, weight))
        torch.testing.assert_close(d_input.sum(1), output.sum(1))
        torch.testing.assert_close(d_weight.sum(1), output.sum(0))


def test_evaluation_and_p_zero_draw_nothing() -> None:
    before = torch.get_rng_state()
    dropconnect_linear(INPUT, WEIGHT, None, 0.5, training=False)
    dropconnect_linear(INPUT, WEIGHT, None, 0.0)
    assert torch.equal(torch.get_rng_state(), before)


def test_states_are_64_bit() -> None:
    states = torch.stack([draw_rng_state(torch.device("cpu")) for _ in range(64)])
    assert states.dtype == torch.int64
    # 62 random bits or more: the chance that all 64 values miss the top quarter is below 1e-16.
    assert (states.abs() >> 61).any()
    assert len(set(states.flatten().tolist())) == 128


@pytest.mark.parametrize("seed", [0, -1, 2**64 - 1, -(2**63)])
def test_make_rng_state_takes_manual_seed_s_range(seed: int) -> None:
    torch.Generator().manual_seed(seed)
    state = fused_dropout.make_rng_state(seed, seed)
    assert [value % 2**64 for value in state.tolist()] == [seed % 2**64] * 2
