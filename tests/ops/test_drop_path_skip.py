"""drop_path_skip gives what drop_path gives, and runs the module on the kept samples alone."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from support.devices import generator_state
from support.drop_path_skip import Seen, square
from support.tensors import DTYPES
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import fused_dropout
from fused_dropout import functional, reference
from fused_dropout.functional import drop_path, drop_path_add, drop_path_skip
from fused_dropout.nn import DropPathSkip

SHAPES = [(1,), (2, 3), (7, 5), (64, 3, 9), (7, 4, 5, 3), (6, 2, 3, 4, 5)]
FORMS = [torch.contiguous_format, torch.channels_last]


def wanted(
    x: Tensor, p: float, residual: Tensor | None, scale: bool = True, **source: Any
) -> Tensor:
    """By zeroing."""
    if residual is None:
        return drop_path(square(x), p, True, scale, **source)
    return drop_path_add(residual, square(x), p, True, scale, **source)


@pytest.mark.parametrize("summed", [False, True])
@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.97, 1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_values_and_gradients_are_those_of_zeroing(
    summed: bool, p: float, dtype: torch.dtype, backend: torch.device
) -> None:
    """Bit for bit; in particular where no sample is kept, and where all are."""
    torch.manual_seed(0)
    for seed, shape in enumerate(SHAPES * 2):
        for form in FORMS if len(shape) == 4 else FORMS[:1]:
            x = torch.randn(shape).to(dtype).contiguous(memory_format=form).requires_grad_()
            residual = torch.randn(shape).to(dtype).requires_grad_() if summed else None
            leaves = [x] if residual is None else [x, residual]
            for scale in (True, False):
                output = drop_path_skip(x, square, p, True, scale, residual=residual, seed=seed)
                expected = wanted(x, p, residual, scale, seed=seed)
                assert output.dtype == dtype and torch.equal(output, expected)
                if residual is None:
                    assert output.stride() == expected.stride()
                grad = torch.randn_like(output)
                ours = torch.autograd.grad(output, leaves, grad)
                for one, other in zip(
                    ours, torch.autograd.grad(expected, leaves, grad), strict=True
                ):
                    assert torch.equal(one, other)


def test_against_the_reference_s_mask(place: torch.device) -> None:
    x, residual = torch.randn(2, 50, 3, dtype=torch.float64)
    for p in (0.5, 0.1):
        kept = reference.mask(50, p, seed=4).to(place)[:, None]
        expected = torch.where(kept, square(x) / reference.keep_rate(p), 0)
        output = drop_path_skip(x, square, p, True, seed=4)
        torch.testing.assert_close(output, expected)
        output = drop_path_skip(x, square, p, True, residual=residual, seed=4)
        torch.testing.assert_close(output, expected + residual)


def test_the_module_sees_the_kept_samples_alone(place: torch.device) -> None:
    x = torch.arange(40.0)[:, None].expand(40, 3)
    given: list[Tensor] = []

    def note(x: Tensor) -> Tensor:
        given.append(x)
        return x

    for p in (0.4, 0.9):
        drop_path_skip(x, note, p, True, seed=6)
        kept = reference.mask(40, p, seed=6).to(place)
        assert 0 < kept.sum() < 40
        assert torch.equal(given.pop(), x[kept])
    drop_path_skip(x, note, 0.001, True, seed=6)
    assert reference.mask(40, 0.001, seed=6).all()
    assert given.pop() is x, "where all are kept there is no copy"


def test_without_a_kept_sample_the_module_runs_on_the_first(place: torch.device) -> None:
    """So the output has a shape, and parameters gradients of 0, whatever the module makes."""
    layer = torch.nn.Linear(3, 2)
    x = torch.randn(4, 3, requires_grad=True)
    bad = Seen(lambda x: layer(x) * torch.inf)
    (seed,) = [s for s in range(200) if not reference.mask(4, 0.9, seed=s).any()][:1]
    for p, source in ((1.0, {}), (0.9, {"seed": seed})):
        for residual in (None, torch.randn(4, 2)):
            bad.samples.clear()
            output = drop_path_skip(x, bad, p, True, residual=residual, **source)
            assert bad.samples == [1]
            assert torch.equal(output, torch.zeros(4, 2) if residual is None else residual)
    grads = torch.autograd.grad(drop_path_skip(x, layer, 1.0, True).sum(), [x, *layer.parameters()])
    assert all(grad.count_nonzero() == 0 for grad in grads)


def test_nothing_leaks_out_of_dropped_samples(place: torch.device) -> None:
    x = torch.full((60, 2), torch.nan, requires_grad=True)
    kept = reference.mask(60, 0.5, seed=1).to(place)
    for residual in (None, torch.ones(60, 2)):
        output = drop_path_skip(x, square, 0.5, True, residual=residual, seed=1)
        assert (output[~kept] == (0 if residual is None else 1)).all()
        assert output[kept].isnan().all()
        (grad,) = torch.autograd.grad(output.sum(), x)
        assert (grad[~kept] == 0).all() and grad[kept].isnan().all()


# ---- where the random state comes from -----------------------------------------------------------


def test_draws_what_drop_path_draws(place: torch.device) -> None:
    x = torch.randn(50, 3)
    torch.manual_seed(2)
    expected, after = drop_path(square(x), 0.4, True), generator_state(place)
    torch.manual_seed(2)
    assert torch.equal(drop_path_skip(x, square, 0.4, True), expected)
    assert torch.equal(generator_state(place), after)
    generators = [torch.Generator(place).manual_seed(5) for _ in range(2)]
    ours = drop_path_skip(x, square, 0.4, True, generator=generators[0])
    assert torch.equal(ours, drop_path(square(x), 0.4, True, generator=generators[1]))
    state = fused_dropout.make_rng_state(3, 4, "cpu")
    ours = drop_path_skip(x, square, 0.4, True, rng_state=state)
    assert torch.equal(ours, drop_path(square(x), 0.4, True, rng_state=state))
    # drop_path draws once the module has run, and so behind a dropout in it.
    torch.manual_seed(2)
    drop_path_skip(x, partial(functional.dropout, p=0.5), 0.4, True)
    assert not torch.equal(generator_state(place), after)


def test_nothing_is_drawn_where_nothing_is_dropped(place: torch.device) -> None:
    x, residual = torch.randn(2, 5, 3)
    before = generator_state(place)
    for p, training in ((0.5, False), (0.0, True), (1e-9, True)):
        assert torch.equal(drop_path_skip(x, square, p, training), square(x))
        output = drop_path_skip(x, square, p, training, residual=residual)
        assert torch.equal(output, residual + square(x))
    drop_path_skip(x, square, 1.0, True)
    assert drop_path_skip(x[:0], square, 0.5, True, residual=residual[:0]).shape == (0, 3)
    assert drop_path_skip(x.long(), square, 0.5).dtype == torch.int64
    assert torch.equal(generator_state(place), before)


def test_checkpointing_draws_the_same_again(place: torch.device) -> None:
    layer = torch.nn.Linear(3, 3)
    x = torch.randn(20, 3, requires_grad=True)
    seen = Seen(layer)
    found = []
    for around in (
        lambda: drop_path_skip(x, seen, 0.5, True, residual=x),
        lambda: checkpoint(
            lambda x: drop_path_skip(x, seen, 0.5, True, residual=x), x, use_reentrant=False
        ),
        lambda: drop_path_skip(
            x, partial(checkpoint, seen, use_reentrant=False), 0.5, True, residual=x
        ),
    ):
        torch.manual_seed(7)
        found.append(torch.autograd.grad(around().square().sum(), [x, layer.weight]))
    assert len(set(seen.samples)) == 1 and 0 < seen.samples[0] < 20
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            assert torch.equal(one, other)


# ---- where the host may not choose ---------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
def test_zeroes_where_others_record_or_transform(place: torch.device) -> None:
    """All samples run, and the values are the same. tests/table has more of these."""
    x = torch.randn(30, 4)
    expected = drop_path_skip(x, square, 0.5, True, seed=1)

    def call(x: Tensor) -> Tensor:
        return drop_path_skip(x, seen, 0.5, True, seed=1)

    seen = Seen()
    with FlopCounterMode(display=False):
        outputs = [call(x)]
    outputs.append(torch.func.vmap(call, in_dims=1, out_dims=1)(x))
    outputs.append(torch.func.jvp(call, (x,), (x,))[0])
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x)
        outputs.append(torch.autograd.forward_ad.unpack_dual(call(dual)).primal)
    outputs.append(torch.jit.trace(call, x, check_trace=False)(x))
    assert set(seen.samples) == {30} and len(seen.samples) == 5
    for output in outputs:
        assert torch.equal(output, expected)


def test_torch_fx_records_the_module(place: torch.device) -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.layer = torch.nn.LayerNorm(4), torch.nn.Linear(4, 4)
            self.drop_path = DropPathSkip(0.5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.drop_path(x, lambda x: self.layer(self.norm(x)), residual=x)
            return self.drop_path(x, self.layer)

    block, x = Block(), torch.randn(30, 4)
    traced = torch.fx.symbolic_trace(block)
    for training in (True, False):
        torch.manual_seed(8)
        expected = block.train(training)(x)
        torch.manual_seed(8)
        if training:
            assert torch.equal(traced(x), expected)
        compiled = torch.compile(block, fullgraph=True, backend="eager")
        assert compiled(x).shape == x.shape
    assert {node.op for node in traced.graph.nodes} >= {"call_module", "call_function"}


def test_a_module_that_is_compiled(place: torch.device) -> None:
    """Around it everything is eager, and so it runs on the kept samples."""
    torch._dynamo.reset()
    x = torch.randn(30, 4)
    seen = Seen(torch.compile(square, backend="eager", dynamic=True))
    output = drop_path_skip(x, seen, 0.5, True, seed=1)
    assert torch.equal(output, drop_path_skip(x, square, 0.5, True, seed=1))
    assert 0 < seen.samples[0] < 30


def test_a_gpu_is_not_waited_for(cuda: torch.device) -> None:
    """The host knows what is kept; where the state is on the GPU it does not, and all run."""
    x = torch.randn(30, 4, device=cuda, requires_grad=True)
    expected = drop_path_skip(x, square, 0.5, True, residual=x, seed=1)
    seen = Seen()
    torch.cuda.set_sync_debug_mode("error")
    try:
        output = drop_path_skip(x, seen, 0.5, True, residual=x, seed=1)
        output.sum().backward()
        drop_path_skip(x, seen, 0.5, True)
        state = fused_dropout.make_rng_state(1, 0, cuda)
        on_gpu = drop_path_skip(x, seen, 0.5, True, residual=x, rng_state=state)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(output, expected) and torch.equal(on_gpu, expected)
    assert 0 < seen.samples[0] < 30 and seen.samples[2] == 30


def test_zeroes_while_a_graph_is_captured(cuda: torch.device) -> None:
    """So that every replay may drop other samples."""
    x = torch.ones(64, 4, device=cuda)
    seen, graph = Seen(), torch.cuda.CUDAGraph()
    drop_path_skip(x, square, 0.5, True)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        output = drop_path_skip(x, seen, 0.5, True)
        fixed = drop_path_skip(x, seen, 0.5, True, seed=1)
    assert seen.samples == [64, 64]
    replays = []
    for _ in range(2):
        graph.replay()
        replays.append(output.clone())
        assert torch.equal(fixed, drop_path_skip(x, square, 0.5, True, seed=1))
    assert not torch.equal(*replays)


# ---- derivatives ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 2])
def test_derivatives(seed: int, place: torch.device) -> None:
    """Batches of directions too, which torch.func's vmap makes of the backward pass."""
    torch.manual_seed(3)
    x, residual = torch.randn(2, 5, 2, dtype=torch.float64)
    x.requires_grad_()
    residual.requires_grad_()
    calls = (
        (lambda x: drop_path_skip(x, torch.sin, 0.5, True, seed=seed), (x,)),
        (
            lambda x, r: drop_path_skip(x, torch.sin, 0.5, True, residual=r, seed=seed),
            (x, residual),
        ),
    )
    assert 0 < reference.mask(5, 0.5, seed=seed).sum() < 5
    for call, leaves in calls:
        assert gradcheck(call, leaves, check_batched_grad=True)
        assert gradgradcheck(call, leaves, check_batched_grad=True)


def test_the_residual_s_gradient_is_the_result_s_own(place: torch.device) -> None:
    x, residual = torch.randn(2, 20, 3)
    residual.requires_grad_()
    output = drop_path_skip(x, square, 0.5, True, residual=residual, seed=1)
    grad = torch.randn(20, 3)
    (found,) = torch.autograd.grad(output, residual, grad)
    assert found.data_ptr() == grad.data_ptr(), "it is a copy"
