"""Where masks come from: torch's generators, seed=, rng_state=."""

from __future__ import annotations

import functools
import operator

import pytest
import torch

import fused_dropout
from fused_dropout._core import rng
from fused_dropout._core.rng import draw_rng_state
from fused_dropout.functional import dropconnect_linear


def draw(p: float = 0.5, training: bool = True, **kwargs) -> torch.Tensor:
    return dropconnect_linear(torch.ones(6, 50), torch.ones(9, 50), None, p, training, **kwargs)


@pytest.mark.skipif(torch.backends.cuda.is_built(), reason="this torch has CUDA")
def test_a_state_on_a_device_that_torch_lacks() -> None:
    with pytest.raises(RuntimeError, match="device must be one that this torch has, got cuda: "):
        fused_dropout.make_rng_state(1, device="cuda")


def test_backward_uses_the_forward_s_mask(place: torch.device) -> None:
    """With unit operands, the output counts the kept connections, and so do the gradients."""
    input, weight = torch.ones(6, 50, requires_grad=True), torch.ones(9, 50, requires_grad=True)
    for storage in ("regenerate", "packed"):
        output = dropconnect_linear(input, weight, None, 0.3, mask_storage=storage)
        d_input, d_weight = torch.autograd.grad(output.sum(), (input, weight))
        torch.testing.assert_close(d_input.sum(1), output.sum(1))
        torch.testing.assert_close(d_weight.sum(1), output.sum(0))


def test_all_64_bits_of_a_state_are_drawn() -> None:
    """On the CPU, each bit is 0 in some states and 1 in others, and so are int64's outer quarters.

    Either fails by chance with probability 1e-15.
    """
    generator = torch.Generator().manual_seed(1)
    for source in (None, generator):
        torch.manual_seed(1)
        states = torch.stack([draw_rng_state(torch.empty(0), source) for _ in range(64)])
        assert states.max() > 2**62 and states.min() < -(2**62)
        for column in states.T.tolist():
            bits = [number % 2**64 for number in column]
            assert functools.reduce(operator.or_, bits) == 2**64 - 1
            assert functools.reduce(operator.and_, bits) == 0


@pytest.mark.parametrize("seed", [0, -1, 2**64 - 1, -(2**63)])
def test_make_rng_state_takes_manual_seed_s_range(seed: int, place: torch.device) -> None:
    torch.Generator(place).manual_seed(seed)
    state = fused_dropout.make_rng_state(seed, seed)
    assert (state.dtype, state.shape) == (torch.int64, (2,))
    assert [value % 2**64 for value in state.tolist()] == [seed % 2**64] * 2
    state = fused_dropout.make_rng_state(seed, 5)
    assert [value % 2**64 for value in state.tolist()] == [seed % 2**64, 5]


# ---- generators of a GPU, without one


class GeneratorOfAGpu:
    """What a random state is drawn from on a GPU, as torch.Generator has it before torch 2.14."""

    def __init__(self, seed: int, offset: int) -> None:
        self.seed, self.offset = seed, offset

    def initial_seed(self) -> int:
        return self.seed

    def get_offset(self) -> int:
        return self.offset

    def set_offset(self, offset: int) -> None:
        self.offset = offset


class GeneratorSince214(GeneratorOfAGpu):
    """It reserves numbers itself, safe against other threads."""

    def philox_state(self, increment: int) -> tuple[torch.Tensor, ...]:
        self.offset, offset = self.offset + increment, self.offset
        seed = self.seed - 2**64 if self.seed >= 2**63 else self.seed
        return tuple(torch.tensor([number]) for number in (seed, offset, 0))


@pytest.mark.parametrize("kind", [GeneratorOfAGpu, GeneratorSince214])
@pytest.mark.parametrize("seed", [0, 5, 2**63 + 1, 2**64 - 1])
def test_a_gpu_s_generator_gives_its_seed_and_offset(kind: type, seed: int) -> None:
    generator = kind(seed, 8)
    draw = functools.partial(rng._state_of_cuda_generator, torch.device("cuda", 0), generator)
    first, second = draw(), draw()
    assert first.device.type == "cpu", "no launch, and nothing to wait for"
    assert [value % 2**64 for value in first.tolist()] == [seed, 8]
    assert [value % 2**64 for value in second.tolist()] == [seed, 12], "one Philox call later"


def test_a_key_of_torch_func_random_is_a_random_state() -> None:
    key = torch.tensor([2**64 - 3, 7], dtype=torch.uint64)
    state = fused_dropout.make_rng_state(2**64 - 3, 7)
    input = torch.ones(300)
    output = fused_dropout.functional.dropout(input, rng_state=key)
    assert torch.equal(output, fused_dropout.functional.dropout(input, rng_state=state))
