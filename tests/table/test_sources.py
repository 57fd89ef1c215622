"""Where random numbers come from, and that threads and devices do not change them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from small_calls import (
    SEED,
    assert_same_bits,
    built,
    call_of,
    direction_like,
    drawing_call_of,
    each_layer,
    each_op,
    inputs_of,
    layer_results,
    leaves_of,
    operands_of,
    results,
)
from support.devices import generator_state
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fused_dropout import make_rng_state
from fused_dropout._tools.common import thread_count
from fused_dropout._tools.table import DTYPES, Layer, Op
from fused_dropout._tools.verify.errors import error_bound, error_ratio


@each_op("random sources")
def test_seeds_are_states_of_offset_zero(op: Op, place: torch.device) -> None:
    operands = operands_of(op)
    before = generator_state(place)
    for seed in (0, SEED, -1, 2**63, 2**64 - 1):
        state = make_rng_state(seed, 0)
        ours = [
            call_of(op, **source)(*operands) for source in ({"seed": seed}, {"rng_state": state})
        ]
        assert_same_bits(ours[:1], ours[1:])
    assert torch.equal(generator_state(place), before)


@each_op("random sources")
def test_a_state_with_gaps(op: Op, place: torch.device) -> None:
    """Every other number of a tensor, a column, and one number twice mean what they say."""
    gaps = torch.tensor([5, 77, 2**40 + 3, 88])[::2]
    column = torch.tensor([[5, 1], [2**40 + 3, 2]])[:, 0]
    expanded = torch.tensor([5]).expand(2)
    for state in (gaps, column, expanded):
        assert not state.is_contiguous()
        found, wanted = (
            results(call_of(op, rng_state=given), leaves_of(op))
            for given in (state, state.contiguous())
        )
        assert_same_bits(found, wanted)


@each_op("random sources")
def test_offsets_and_seeds_give_other_masks(op: Op, place: torch.device) -> None:
    operands = operands_of(op)
    states = [make_rng_state(SEED + seed, offset) for seed in range(3) for offset in range(3)]
    outputs = [call_of(op, rng_state=state)(*operands) for state in states]
    assert len({tuple(output.flatten().tolist()) for output in outputs}) > 4


@each_op("random sources")
def test_generators(op: Op, place: torch.device) -> None:
    """A generator gives what torch's own does from the same seed; each call draws anew."""
    operands = operands_of(op)
    generator = torch.Generator(place).manual_seed(SEED)
    before = generator_state(place)
    ours = [call_of(op, generator=generator)(*operands) for _ in range(4)]
    assert torch.equal(generator_state(place), before)
    torch.manual_seed(SEED)
    assert_same_bits(ours, [drawing_call_of(op)(*operands) for _ in range(4)])
    assert any(not torch.equal(ours[0], other) for other in ours)


@each_op("random sources")
def test_idle_calls_leave_the_generator_alone(op: Op, place: torch.device) -> None:
    operands = operands_of(op)
    before = generator_state(place)
    for settings in (*op.idle, {"training": False}):
        if settings == {"training": False}:
            if op.name in ("gaussian_noise", "dropconnect_gaussian"):
                continue  # which have no evaluation mode
            settings = {**dict(op.small[1]), **settings}
        op.function(*operands, **dict(settings))
        assert torch.equal(generator_state(place), before)
    drawing_call_of(op)(*operands)
    assert not torch.equal(generator_state(place), before)


@each_op("random sources")
def test_at_most_one_source(op: Op, place: torch.device) -> None:
    sources = {
        "generator": torch.Generator(place),
        "seed": SEED,
        "rng_state": make_rng_state(SEED),
    }
    for left in sources:
        given = {name: value for name, value in sources.items() if name != left}
        with pytest.raises(ValueError, match="at most one of"):
            call_of(op, **given)(*operands_of(op))


@each_op("random sources")
def test_wrong_sources(op: Op, place: torch.device) -> None:
    operands = operands_of(op)
    with pytest.raises(ValueError, match="rng_state must be"):
        call_of(op, rng_state=torch.zeros(3, dtype=torch.int64))(*operands)
    with pytest.raises(TypeError, match="rng_state must be"):
        call_of(op, rng_state=3)(*operands)
    with pytest.raises(TypeError, match="generator must be"):
        call_of(op, generator=3)(*operands)
    with pytest.raises(TypeError, match="seed must be"):
        call_of(op, seed=0.5)(*operands)


@each_op("random sources")
def test_backward_uses_what_forward_drew(op: Op, place: torch.device) -> None:
    """The numbers of a state that was drawn, which nobody has seen, are in the gradients too."""
    leaves = leaves_of(op)
    torch.manual_seed(SEED)
    output = drawing_call_of(op)(*leaves)
    drawing_call_of(op)(*leaves)
    gradients = torch.autograd.grad(output, leaves, direction_like(output))
    tangents = [direction_like(leaf).cos() for leaf in leaves]

    def moved(step: float) -> Tensor:
        torch.manual_seed(SEED)
        pairs = zip(leaves, tangents, strict=True)
        return drawing_call_of(op)(*(leaf.detach() + step * tangent for leaf, tangent in pairs))

    difference = (moved(1e-6) - moved(-1e-6)) / 2e-6
    along = sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True))
    torch.testing.assert_close(along, (difference * direction_like(output)).sum())


@each_op("random sources")
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_checkpoint(op: Op, reentrant: bool, place: torch.device) -> None:
    """The forward pass is run twice, on the same mask."""

    def checkpointed(*operands: Tensor) -> Tensor:
        return checkpoint(drawing_call_of(op), *operands, use_reentrant=reentrant)

    leaves = leaves_of(op)
    found = []
    for call in (drawing_call_of(op), checkpointed):
        torch.manual_seed(SEED)
        output = call(*leaves)
        drawing_call_of(op)(*leaves)  # moves the generator on before backward
        found.append(
            [output.detach(), *torch.autograd.grad(output.sum(), leaves)]
            if not reentrant
            else [output.detach(), *gradients_by_backward(output, leaves)]
        )
    assert_same_bits(*found)


def gradients_by_backward(output: Tensor, leaves: list[Tensor]) -> Iterator[Tensor]:
    """Reentrant checkpoints know no torch.autograd.grad."""
    for leaf in leaves:
        leaf.grad = None
    output.sum().backward()
    for leaf in leaves:
        assert leaf.grad is not None
        yield leaf.grad


@each_layer()
def test_modules_follow_manual_seed(layer: Layer, place: torch.device) -> None:
    module, inputs = built(layer), inputs_of(layer)
    assert_same_bits(layer_results(module, inputs), layer_results(module, inputs))
    assert any(not torch.equal(module(*inputs), module(*inputs)) for _ in range(3))


@each_op("threads")
def test_threads(op: Op) -> None:
    """Large enough that several threads get a share."""
    shape = op.shapes[-1]
    settings = op.settings[0]
    wanted: list[Tensor] = []
    for threads in (1, 2, 3):
        leaves = [leaf.requires_grad_() for leaf in operands_of(op, torch.float32, shape)]
        with thread_count(threads):
            output = op.function(*leaves, seed=SEED, **dict(settings))
            gradients = torch.autograd.grad(output.sum(), leaves) if leaves else ()
        found = [output.detach(), *gradients]
        wanted = wanted or found
        if op.name == "dropconnect_gaussian":  # whose gradients are torch's products
            torch.testing.assert_close(found, wanted)
            found = found[:1]
        assert_same_bits(found, wanted[: len(found)])


@each_op("CPU = CUDA")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cpu_and_cuda(op: Op, dtype: torch.dtype, cuda: torch.device) -> None:
    """The same seed drops the same elements; numbers differ by rounding alone."""
    here = [operand.requires_grad_() for operand in operands_of(op, dtype)]
    if not here:
        ours = call_of(op, seed=SEED, device=cuda)().cpu()
        torch.testing.assert_close(ours, call_of(op)(), rtol=1e-6, atol=1e-6)
        return
    there = [leaf.detach().to(cuda).requires_grad_() for leaf in here]
    wide = [leaf.detach().double().requires_grad_() for leaf in here]
    ours, cpus = results(call_of(op), there), results(call_of(op), here)
    for one, cpu, truth in zip(ours, cpus, results(call_of(op), wide), strict=True):
        assert torch.equal(one.cpu() == 0, cpu == 0)
        assert error_ratio(one.cpu(), truth, error_bound([cpu], truth, 8), dtype) <= 1
