"""Concrete dropout: values, gradients to input and logit_p, layouts, statistics, its module."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from pathlib import Path

import pytest
import torch
from support.devices import threads
from support.noise_checks import (
    EXTREME_RATES,
    SIZES,
    assert_concrete_extremes,
    assert_rounded,
    check_distribution,
    check_mean,
    check_neighbours,
    layouts,
)
from support.tensors import DTYPES, random_tensor
from torch import Tensor
from torch.distributed.fsdp import fully_shard

import fused_dropout
from fused_dropout._core import extension
from fused_dropout._tools.memory import kept_for_backward
from fused_dropout.functional import concrete_dropout
from fused_dropout.nn import ConcreteDropout
from fused_dropout.reference import _noise as reference

LARGE = 1 << 18
LARGEST_LOGIT = 17  # of a uniform number, log(2^24)


def logit_of(p: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(math.log(p / (1 - p)), dtype=dtype).requires_grad_()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("p", "temperature"), [(0.1, 0.1), (0.6, 0.5), (0.999, 2.0)])
def test_matches_the_reference(
    p: float, temperature: float, dtype: torch.dtype, backend: torch.device
) -> None:
    computed_in = torch.float64 if dtype == torch.float64 else torch.float32
    for size in SIZES:
        input = random_tensor((size,), dtype=dtype).requires_grad_()
        grad = random_tensor((size,), dtype=dtype, seed=1)
        logit = logit_of(p, computed_in)
        output = concrete_dropout(input, logit, temperature, seed=7)
        d_input, d_logit = torch.autograd.grad(output, (input, logit), grad)
        assert (output.dtype, d_input.dtype, d_logit.dtype) == (dtype, dtype, computed_in)
        wide = input.detach().double().requires_grad_(), logit.detach().double().requires_grad_()
        truth = reference.concrete_dropout(*wide, temperature, seed=7)
        d_truth, d_logit_truth = torch.autograd.grad(truth, wide, grad.double())
        # keep = 1 - z is a number up to 1, of an exponent with the relative error of logit u / t.
        factor = (truth / wide[0]).detach()
        keep = factor * (1 - p)
        scale = (1 + keep * (1 - keep) * LARGEST_LOGIT / temperature) / (1 - p)
        assert_rounded(output.detach(), truth.detach(), scale * wide[0].detach(), ulps=4)
        assert_rounded(d_input, d_truth, scale * grad.double(), ulps=4)
        terms = scale * grad.double() * wide[0].detach() * (1 + 1 / temperature)
        assert_rounded(d_logit, d_logit_truth, terms.abs().sum(), ulps=4)


def test_extreme_logits_and_temperatures(backend: torch.device) -> None:
    """Beyond float's exponents the mask is 0 or 1, and nothing becomes NaN."""
    for dtype, (rate, temperature) in itertools.product(DTYPES[::3], EXTREME_RATES):
        input = random_tensor((500,), dtype=dtype)
        grad = random_tensor((500,), dtype=dtype, seed=1)
        leaves = input.clone().requires_grad_(), torch.tensor(rate, dtype=dtype).requires_grad_()
        output = concrete_dropout(*leaves, temperature, seed=1)
        ours = output.detach(), *torch.autograd.grad(output, leaves, grad)
        assert_concrete_extremes(ours, input, rate, temperature, grad, seed=1)
    input = torch.ones(500)
    assert torch.equal(concrete_dropout(input, torch.tensor(-80.0), seed=1), input)
    hard = concrete_dropout(input, torch.tensor(0.0), 1e-4, seed=1)
    u = fused_dropout.uniform_noise(500, seed=1)
    near = (u - 0.5).abs() < 0.005
    expected = torch.where(u < 0.5, 2.0, 0.0)
    torch.testing.assert_close(hard[~near], expected[~near], rtol=0, atol=1e-37)
    assert concrete_dropout(input, torch.tensor(math.nan), seed=1).isnan().all()


@pytest.mark.parametrize("layout", ["channels_last", "reversed", "gaps", "misaligned"])
def test_layouts(layout: str, backend: torch.device) -> None:
    dense = random_tensor((3, 5, 7, 9))
    grad = random_tensor((3, 5, 7, 9), seed=1)

    def run(input: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
        leaves = input.detach().requires_grad_(), logit_of(0.3)
        output = concrete_dropout(*leaves, seed=2)
        return output, *torch.autograd.grad(output, leaves, grad)

    expected = run(dense, grad)
    for a, b in ((layouts(dense)[layout], grad), (dense, layouts(grad)[layout])):
        results = run(a, b)
        assert results[0].stride() == torch.empty_like(a).stride()
        for mine, other in zip(results, expected, strict=True):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 5, 70), (9, 17, 4, 2), (3, 1, 130, 6)])
def test_shared_masks(shape: tuple[int, ...], dtype: torch.dtype, backend: torch.device) -> None:
    """Of every choice of dimensions, in every memory format."""
    temperature, p = 0.5, 0.3
    computed_in = torch.float64 if dtype == torch.float64 else torch.float32
    dense, grad = (random_tensor(shape, dtype=dtype, seed=k) for k in range(2))
    logit = logit_of(p, computed_in)
    bound = (1 + LARGEST_LOGIT / 4 / temperature) / (1 - p)
    for count in range(5):
        for dims in itertools.combinations(range(-4, 0), count):
            wide = dense.double().requires_grad_(), logit.detach().double().requires_grad_()
            truth = reference.concrete_dropout(*wide, temperature, broadcast_dims=dims, seed=7)
            d_truth, d_logit_truth = torch.autograd.grad(truth, wide, grad.double())
            sums = []
            for input in (dense, *layouts(dense).values()):
                leaves = input.detach().requires_grad_(), logit
                settings = {"temperature": temperature, "broadcast_dims": dims, "seed": 7}
                output = concrete_dropout(*leaves, **settings)
                assert output.stride() == torch.empty_like(input).stride()
                d_input, d_logit = torch.autograd.grad(output, leaves, grad)
                assert_rounded(output.detach(), truth.detach(), bound * wide[0].detach(), ulps=4)
                assert_rounded(d_input, d_truth, bound * grad.double(), ulps=4)
                terms = bound * grad.double() * wide[0].detach() * (1 + 1 / temperature)
                assert_rounded(d_logit, d_logit_truth, terms.abs().sum(), ulps=4)
                sums.append(d_logit)
            assert all(torch.equal(one, sums[0]) for one in sums)


def test_a_mask_that_nothing_shares_is_the_usual_one(backend: torch.device) -> None:
    input, logit = random_tensor((300, 1, 40)), logit_of(0.3)
    expected = concrete_dropout(input, logit, seed=3)
    torch.testing.assert_close(
        concrete_dropout(input, logit, broadcast_dims=(1,), seed=3), expected, rtol=1e-5, atol=0
    )
    shared = concrete_dropout(torch.ones(300, 40), logit, broadcast_dims=[-1], seed=3)
    alone = concrete_dropout(torch.ones(300), logit, seed=3)
    torch.testing.assert_close(shared, alone[:, None].expand(300, 40), rtol=1e-5, atol=0)
    assert (shared == shared[:, :1]).all()


def test_third_derivative_of_shared_masks(place: torch.device) -> None:
    leaves = (
        random_tensor((3, 4), dtype=torch.float64).requires_grad_(),
        logit_of(0.3, torch.float64),
    )

    def second(x: Tensor, logit: Tensor) -> Tensor:
        output = concrete_dropout(x, logit, 0.7, broadcast_dims=(0,), seed=3).square().sum()
        (first,) = torch.autograd.grad(output, logit, create_graph=True)
        return torch.autograd.grad(first, logit, create_graph=True)[0]

    assert torch.autograd.gradcheck(second, leaves)


def test_third_derivative(place: torch.device) -> None:
    leaves = random_tensor((5,), dtype=torch.float64).requires_grad_(), logit_of(0.3, torch.float64)

    def second(x: Tensor, logit: Tensor) -> Tensor:
        output = concrete_dropout(x, logit, 0.7, seed=3).square().sum()
        (first,) = torch.autograd.grad(output, logit, create_graph=True)
        return torch.autograd.grad(first, logit, create_graph=True)[0]

    assert torch.autograd.gradcheck(second, leaves)


@pytest.mark.parametrize(("learned", "kept"), [(False, 16), (True, 16 + 4000)])
def test_what_is_kept_for_backward(learned: bool, kept: int, place: torch.device) -> None:
    input, logit = torch.ones(1000, requires_grad=True), logit_of(0.1).requires_grad_(learned)
    tensors = kept_for_backward(lambda: concrete_dropout(input, logit))
    assert sum(tensor.nbytes for tensor in tensors if tensor.numel() > 1) == kept


def test_only_the_gradients_asked_for(place: torch.device) -> None:
    input, grad = random_tensor((300,)), random_tensor((300,), seed=1)
    both = input.clone().requires_grad_(), logit_of(0.3)
    concrete_dropout(*both, seed=1).backward(grad)
    alone = input.clone().requires_grad_()
    concrete_dropout(alone, both[1].detach(), seed=1).backward(grad)
    torch.testing.assert_close(alone.grad, both[0].grad)
    logit = logit_of(0.3)
    concrete_dropout(input, logit, seed=1).backward(grad)
    assert torch.equal(logit.grad, both[1].grad)


def test_logit_of_another_dtype_or_shape(place: torch.device) -> None:
    input = random_tensor((300,), dtype=torch.bfloat16)
    expected = concrete_dropout(input, logit_of(0.3), seed=1)
    for logit in (logit_of(0.3, torch.float64), logit_of(0.3).detach().reshape(1, 1)):
        logit = logit.detach().requires_grad_()
        output = concrete_dropout(input, logit, seed=1)
        assert torch.equal(output, expected)
        (d_logit,) = torch.autograd.grad(output.float().sum(), logit)
        assert (d_logit.shape, d_logit.dtype) == (logit.shape, logit.dtype)


def test_nothing_to_do_returns_the_input(place: torch.device) -> None:
    input, logit = torch.ones(5), logit_of(0.3)
    assert concrete_dropout(input, logit, training=False) is input
    empty = torch.ones(4, 0)
    assert concrete_dropout(empty, logit) is empty
    assert concrete_dropout(torch.tensor(2.0), logit, seed=1).shape == ()


@pytest.mark.parametrize("dims", [(), (0,), (1,)])
def test_results_do_not_depend_on_threads(dims: tuple[int, ...], isa: str) -> None:
    input, grad = (random_tensor((17, 5003), seed=k) for k in range(2))

    def run() -> tuple[Tensor, ...]:
        leaves = input.detach().requires_grad_(), logit_of(0.3)
        output = concrete_dropout(*leaves, broadcast_dims=dims, seed=1)
        return output, *torch.autograd.grad(output, leaves, grad)

    expected = run()
    for count in (1, 3, 7):
        with threads(count):
            for mine, other in zip(run(), expected, strict=True):
                assert torch.equal(mine, other)


def test_statistics(backend: torch.device) -> None:
    """z is concrete: its logit times t, less logit p, is logistic; false alarm below 1e-4."""
    p, t = 0.3, 1.0
    logit = math.log(p / (1 - p))
    output = concrete_dropout(torch.ones(LARGE), torch.tensor(logit), t, seed=5).double()
    z = (1 - output * (1 - p)).clamp(1e-9, 1 - 1e-9)
    uniform = torch.sigmoid(t * torch.log(z / (1 - z)) - logit)
    check_distribution(uniform, lambda x: x)
    check_neighbours((uniform - 0.5) * math.sqrt(12))
    # Rounded, the mask is dropout's: P(z > 1/2) = p.
    check_mean((z > 0.5).double(), p, math.sqrt(p * (1 - p)))


def test_backward_uses_the_forward_s_noise(place: torch.device) -> None:
    input = torch.ones(200, requires_grad=True)
    output = concrete_dropout(input, logit_of(0.3))
    (d_input,) = torch.autograd.grad(output.sum(), input)
    torch.testing.assert_close(d_input, output)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"temperature": 0.0}, ValueError, "temperature must be finite, above 0; got 0.0"),
        ({"temperature": math.nan}, ValueError, "got nan"),
        ({"temperature": None}, TypeError, "temperature must be a float, got NoneType"),
        ({"logit_p": 0.5}, TypeError, "logit_p must be a Tensor, got float"),
        ({"logit_p": torch.zeros(2)}, RuntimeError, r"one element, got shape \[2\]"),
        ({"logit_p": torch.zeros(1).long()}, RuntimeError, "logit_p must have a dtype"),
        ({"logit_p": torch.zeros(1, device="meta")}, RuntimeError, "logit_p must be on.*got meta"),
        ({"input": torch.ones(3).long()}, RuntimeError, "input must have a dtype.*int64"),
        ({"input": [1.0]}, TypeError, "input must be a Tensor, got list"),
        ({"broadcast_dims": (1,)}, IndexError, r"broadcast_dims must be in \[-1, 0\], got 1"),
        ({"broadcast_dims": (0, -1)}, ValueError, "broadcast_dims must name each dimension once"),
        ({"broadcast_dims": (0.5,)}, TypeError, "broadcast_dims"),
        ({"seed": 1, "generator": torch.Generator()}, ValueError, "generator and seed"),
    ],
)
def test_bad_input(change: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        concrete_dropout(**{"input": torch.ones(3), "logit_p": torch.tensor(0.0), **change})


def test_raw_operators_never_crash(place: torch.device) -> None:
    ops = extension.operators()
    state = fused_dropout.make_rng_state(1)
    three, zero = torch.ones(3), torch.tensor(0.0)
    with pytest.raises(RuntimeError, match="temperature must be above 0"):
        ops.concrete_dropout(three, zero, state, 0.0)
    with pytest.raises(RuntimeError, match="logit_p must have one element"):
        ops.concrete_dropout(three, three, state, 0.1)
    with pytest.raises(RuntimeError, match="logit_p must have one element of dtype Double"):
        ops.concrete_dropout(three.double(), zero, state, 0.1)
    with pytest.raises(RuntimeError, match="grad_output must have shape"):
        ops.concrete_dropout_backward(torch.ones(4), three, zero, state, 0.1)
    for dims in ([1], [-1]):
        with pytest.raises(RuntimeError, match=r"shared_dims must be in \[0, 1\), got"):
            ops.concrete_dropout(three, zero, state, 0.1, dims)
        with pytest.raises(RuntimeError, match=r"shared_dims must be in \[0, 1\), got"):
            ops.concrete_dropout_backward(three, three, zero, state, 0.1, dims)
    for dims in ([], [0]):
        none = three[:0], three[:0]
        d_input, d_logit = ops.concrete_dropout_backward(*none, zero, state, 0.1, dims)
        assert d_input.numel() == 0 and d_logit.item() == 0


# ---- the module


def test_module(place: torch.device) -> None:
    layer = ConcreteDropout(torch.nn.Linear(30, 20))
    assert list(layer.state_dict()) == ["logit_p", "layer.weight", "layer.bias"]
    assert layer.logit_p.shape == (1,) and layer.p.shape == () and layer.logit_p.device == place
    assert layer.p.item() == pytest.approx(0.1)
    assert repr(ConcreteDropout()) == (
        "ConcreteDropout(weight_regulariser=1e-06, dropout_regulariser=1e-05, temperature=0.1)"
    )
    input = random_tensor((4, 30))
    torch.manual_seed(1)
    output = layer(input)
    torch.manual_seed(1)
    dropped = concrete_dropout(input, layer.logit_p)
    assert torch.equal(output, layer.layer(dropped))
    bare = ConcreteDropout()
    torch.manual_seed(1)
    assert torch.equal(bare(input), dropped)
    assert torch.equal(layer.eval()(input), layer.layer(input))
    double = ConcreteDropout(torch.nn.Linear(3, 2, dtype=torch.float64))
    assert double.logit_p.dtype == torch.float64
    assert ConcreteDropout(device="meta").logit_p.is_meta


def test_first_p(place: torch.device) -> None:
    torch.manual_seed(0)
    ps = [ConcreteDropout(init_min=0.2, init_max=0.4).p.item() for _ in range(50)]
    assert 0.2 <= min(ps) < 0.25 and 0.35 < max(ps) <= 0.4


def test_regulariser_is_the_paper_s(place: torch.device) -> None:
    layer = ConcreteDropout(
        torch.nn.Linear(30, 20), weight_regulariser=1e-3, dropout_regulariser=1e-2, init_max=0.3
    )
    p = layer.p
    weight, dropout = layer.regulariser()
    torch.testing.assert_close(weight, 1e-3 * layer.layer.weight.square().sum() / (1 - p))
    torch.testing.assert_close(dropout, 1e-2 * 30 * (p * p.log() + (1 - p) * (1 - p).log()))
    d_weight, d_logit = torch.autograd.grad(
        sum(layer.regulariser()), [layer.layer.weight, layer.logit_p]
    )
    assert d_weight.isfinite().all() and d_logit.isfinite()
    bare = ConcreteDropout(features=30, weight_regulariser=1e-3, dropout_regulariser=1e-2)
    with torch.no_grad():
        bare.logit_p.copy_(layer.logit_p)
    assert bare.regulariser().weight.item() == 0
    for a, b in zip(bare.regulariser(layer.layer), (weight, dropout), strict=True):
        torch.testing.assert_close(a, b)
    assert all(term.shape == () for term in (weight, dropout))


@pytest.mark.parametrize(
    ("layer", "shape", "features"),
    [
        (torch.nn.Conv2d(3, 4, 3), (2, 3, 5, 7), 105),
        (torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.ReLU()), (5, 6), 6),
        (None, (5, 3, 4), 12),
        (torch.nn.Linear(6, 4), (5, 3, 6), 6),
    ],
)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_features_are_those_of_the_last_input(
    layer: torch.nn.Module | None,
    shape: tuple[int, ...],
    features: int,
    training: bool,
    compiled: bool,
) -> None:
    module = ConcreteDropout(layer, dropout_regulariser=1e-2).train(training)
    if not isinstance(layer, torch.nn.Linear):
        with pytest.raises(RuntimeError, match="give them, or call the module first"):
            module.regulariser()
    torch.compiler.reset()
    call = torch.compile(module, backend="eager", fullgraph=True) if compiled else module
    call(torch.ones(shape))
    p = module.p
    expected = 1e-2 * features * (p * p.log() + (1 - p) * (1 - p).log())
    torch.testing.assert_close(module.regulariser().dropout, expected)
    torch.export.export(module, (torch.ones(shape),))
    given = ConcreteDropout(layer, dropout_regulariser=1e-2, features=7)
    given(torch.ones(shape))
    torch.testing.assert_close(given.regulariser().dropout, expected / features * 7)


def test_broadcast_dims_of_the_module(place: torch.device) -> None:
    """K of the regulariser counts the mask's elements: channels, in the authors' own layer."""
    layer = ConcreteDropout(broadcast_dims=[-1, 2], dropout_regulariser=1e-2)
    assert repr(layer).endswith("temperature=0.1, broadcast_dims=(-1, 2))")
    input = random_tensor((2, 3, 5, 7))
    torch.manual_seed(1)
    output = layer(input)
    torch.manual_seed(1)
    assert torch.equal(output, concrete_dropout(input, layer.logit_p, broadcast_dims=(2, 3)))
    factor = (output / input).detach()
    torch.testing.assert_close(factor, factor[..., :1, :1].expand(2, 3, 5, 7))
    p = layer.p
    expected = 1e-2 * 3 * (p * p.log() + (1 - p) * (1 - p).log())
    torch.testing.assert_close(layer.regulariser().dropout, expected)
    one_for_all = ConcreteDropout(broadcast_dims=(0, 1), dropout_regulariser=1e-2)
    one_for_all(input)
    torch.testing.assert_close(one_for_all.regulariser().dropout, expected / 3 * 35)
    with pytest.raises(TypeError, match="broadcast_dims"):
        ConcreteDropout(broadcast_dims=("batch",))


def test_states_with_a_scalar_still_load(place: torch.device) -> None:
    model = torch.nn.Sequential(ConcreteDropout(torch.nn.Linear(3, 2)))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    state["0.logit_p"] = torch.tensor(0.25)
    before = dict(state)
    for assign in (False, True):
        with torch.no_grad():
            model[0].logit_p.zero_()
        model.load_state_dict(state, assign=assign)
        assert model[0].logit_p.shape == (1,) and model[0].logit_p.item() == 0.25
    assert state == before and state["0.logit_p"].dim() == 0, "the caller's state is left alone"
    model.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.logit_p"):
        model.load_state_dict({**state, "0.logit_p": torch.zeros(2)})


def test_fully_shard_takes_the_module(tmp_path: Path) -> None:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        module = fully_shard(ConcreteDropout(torch.nn.Linear(3, 2)), mesh=mesh)
        loss = module(torch.ones(4, 3)).sum()
        loss.backward()
        gradient = module.logit_p.grad.full_tensor()
        assert gradient.shape == (1,) and gradient.item() != 0
        assert sum(module.regulariser()).full_tensor().isfinite()
    finally:
        torch.distributed.destroy_process_group()


def test_p_is_finite_at_the_edges(place: torch.device) -> None:
    layer = ConcreteDropout(torch.nn.Linear(3, 2))
    for logit in (-60.0, 60.0):
        with torch.no_grad():
            layer.logit_p.fill_(logit)
        terms = layer.regulariser()
        assert all(term.isfinite() for term in terms)
        assert torch.autograd.grad(sum(terms), layer.logit_p)[0].isfinite()


@pytest.mark.parametrize(("dropout_regulariser", "rises"), [(1e-5, False), (10.0, True)])
def test_learns_p(dropout_regulariser: float, rises: bool, place: torch.device) -> None:
    """A net that fits clean data wants p low; a strong entropy term pulls it up to 1/2."""
    torch.manual_seed(0)
    target = torch.randn(16, 4)
    layer = ConcreteDropout(
        torch.nn.Linear(16, 4), dropout_regulariser=dropout_regulariser, init_min=0.2, init_max=0.2
    )
    optimizer = torch.optim.Adam(layer.parameters(), 0.02)
    for _ in range(300):
        input = torch.randn(64, 16)
        loss = (layer(input) - input @ target).square().mean() + sum(layer.regulariser())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (layer.p > 0.25) if rises else (layer.p < 0.1)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_work_alike(clone, place: torch.device) -> None:
    layer = ConcreteDropout(torch.nn.Linear(30, 20), temperature=0.3)
    other = clone(layer)
    assert repr(other) == repr(layer)
    results = []
    for module in (layer, other):
        torch.manual_seed(1)
        results.append(module(torch.ones(4, 30)))
    assert torch.equal(*results)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"layer": 5}, TypeError, "layer must be a Module or None, got int"),
        ({"temperature": -1.0}, ValueError, "temperature must be finite, above 0"),
        ({"weight_regulariser": -1.0}, ValueError, "weight_regulariser must be finite, at least 0"),
        ({"dropout_regulariser": "x"}, TypeError, "dropout_regulariser must be a float"),
        ({"init_min": 0.0}, ValueError, r"init_min and init_max must be in \(0, 1\)"),
        ({"init_min": 0.5}, ValueError, "in order, got 0.5 and 0.1"),
        ({"features": 0}, ValueError, "features must be in"),
        ({"features": 1.5}, TypeError, "features must be an int"),
    ],
)
def test_bad_module_arguments(change: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ConcreteDropout(**change)
