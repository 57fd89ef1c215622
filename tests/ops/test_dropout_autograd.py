"""Dropout under autograd: what it keeps and writes to; what draws nothing; autocast."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from support.alpha_dropout import functional_alpha
from support.devices import generator_state
from support.tensors import layouts, random_tensor
from torch import Tensor

import fused_dropout
from fused_dropout import functional
from fused_dropout._tools.memory import kept_for_backward

FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "dropout": functional.dropout,
    "dropout1d": lambda input, *args, **keys: functional.dropout1d(input[0, 0], *args, **keys),
    "dropout2d": functional.dropout2d,
    "dropout3d": functional.dropout3d,
    "alpha_dropout": functional.alpha_dropout,
    "feature_alpha_dropout": functional.feature_alpha_dropout,
    "locked_dropout": functional.locked_dropout,
}
SHAPE = (3, 4, 2, 3)


def leaf(shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float64) -> Tensor:
    return random_tensor(shape, dtype).requires_grad_()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_backward_uses_the_forward_s_mask(name: str, place: torch.device) -> None:
    """On constant inputs an element was kept where its gradient is not 0."""
    for inplace in (False, True):
        input = torch.full(SHAPE, 3.0, requires_grad=True)
        output = FUNCTIONS[name](input * 1, 0.5, True, inplace)
        (gradient,) = torch.autograd.grad(output.sum(), input)
        gradient = gradient[0, 0] if name == "dropout1d" else gradient
        kept, dropped = output[gradient != 0].unique(), output[gradient == 0].unique()
        assert len(kept) <= 1
        assert len(dropped) <= 1
        assert kept.tolist() != dropped.tolist()


@pytest.mark.parametrize("shape", [(7,), (20, 30), (2, 20, 5, 6)])
def test_gradients_lie_in_memory_as_those_of_torch(
    shape: tuple[int, ...], place: torch.device
) -> None:
    for name, view in layouts(random_tensor(shape)):
        for _, gradient in layouts(random_tensor(shape, seed=1)):
            input = view.clone().requires_grad_()
            output = functional.dropout(input, 0.5, seed=3)
            (ours,) = torch.autograd.grad(output, input, gradient)
            kept = fused_dropout.mask(input.numel(), 0.5, seed=3).view(shape)
            assert torch.equal(ours, gradient * 2 * kept), name
            assert ours.stride() == torch.empty_like(gradient).stride()


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("inplace", [False, True])
def test_saves_16_bytes(name: str, inplace: bool, place: torch.device) -> None:
    for keys in ({}, {"seed": 1}, {"generator": torch.Generator(place)}):
        input = leaf() + 0
        kept = kept_for_backward(partial(FUNCTIONS[name], input, 0.1, True, inplace, **keys))
        assert [tensor.nbytes for tensor in kept] == [16]


def test_a_random_state_that_changes_before_backward(place: torch.device) -> None:
    for inplace in (False, True):
        state = fused_dropout.make_rng_state(3, device=place)
        output = functional.dropout(leaf() * 1, 0.5, True, inplace, rng_state=state)
        state += 1
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            output.sum().backward()


def test_a_dual_level_without_tangents(place: torch.device) -> None:
    """As where no level is open."""
    input, grad = leaf(), random_tensor(SHAPE, torch.float64, seed=1)
    with torch.autograd.forward_ad.dual_level():
        output = functional.dropout(input, 0.5, seed=3)
    (found,) = torch.autograd.grad(output, input, grad)
    assert torch.equal(output, functional.dropout(input, 0.5, seed=3))
    assert torch.equal(found, functional.dropout(grad, 0.5, seed=3))


def test_operators_without_an_input_or_a_state(place: torch.device) -> None:
    """The operators' own checks answer, as for other wrong arguments."""
    ops, state = torch.ops.fused_dropout, fused_dropout.make_rng_state(3)
    for op in (ops.dropout, ops.dropout_):
        with pytest.raises(RuntimeError, match="expected float32"):
            op(None, None, state, 0.5, 2.0)
        with pytest.raises(RuntimeError, match="rng_state must be a contiguous int64 tensor"):
            op(torch.ones(3), None, None, 0.5, 2.0)


def test_double_backward_of_a_residual(place: torch.device) -> None:
    """The operator behind it, as other layers use it."""
    from fused_dropout._ops.dropout import Dropout, DropoutInPlace

    state = fused_dropout.make_rng_state(3)

    def run(op: type, input: Tensor, residual: Tensor) -> Tensor:
        return op.run((input * 1, residual, state), (0.4, 1.5, (1,), 0.25, -1.0))

    for op in (Dropout, DropoutInPlace):
        leaves = (leaf(), random_tensor(SHAPE, torch.float64, seed=1).requires_grad_())
        call = partial(run, op)
        assert torch.autograd.gradcheck(call, leaves, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(call, leaves, check_fwd_over_rev=True)


# ---- in place


def test_a_leaf_is_refused_before_it_is_changed(place: torch.device) -> None:
    for view in (lambda x: x, lambda x: x[1:]):
        ours, torch_s = (torch.ones(5, 6, requires_grad=True) for _ in range(2))
        with pytest.raises(RuntimeError) as theirs:
            torch.nn.functional.dropout(view(torch_s), 0.5, True, True)
        with pytest.raises(RuntimeError) as error:
            functional.dropout(view(ours), 0.5, True, True)
        assert str(error.value) == str(theirs.value)
        assert torch.equal(ours, torch.ones(5, 6))
        with torch.no_grad():
            functional.dropout(view(ours), 0.5, True, True)
        assert ours.requires_grad
        assert not torch.equal(ours, torch.ones(5, 6))


class OneView(torch.autograd.Function):
    """A view that a Function returns."""

    @staticmethod
    def forward(ctx: Any, input: Tensor) -> Tensor:
        return input.view_as(input)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


@torch.no_grad()
def view_without_grad(input: Tensor) -> Tensor:
    return input[1:]


def inference_tensor(input: Tensor) -> Tensor:
    with torch.inference_mode():
        return torch.ones_like(input)


# Of a leaf: what autograd lets nobody write to, and says so in several ways.
REFUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "leaf": lambda x: x,
    "view of a leaf": lambda x: x[1:],
    "leaf that is a view": lambda x: x.detach()[1:].requires_grad_(),
    "view of a leaf that is a view": lambda x: x.detach()[1:].requires_grad_()[1:],
    "one of several views": lambda x: (x * 1).unbind(0)[1],
    "view of one of several views": lambda x: (x * 1).split(2)[1][0],
    "view made without grad": lambda x: view_without_grad(x * 1),
    "view made by a Function": lambda x: OneView.apply(x * 1),
}


@pytest.mark.parametrize("function", [functional.dropout, functional.gaussian_dropout])
@pytest.mark.parametrize("name", [*REFUSED, "inference tensor"])
def test_what_autograd_refuses_is_not_changed(
    name: str, function: Callable[..., Tensor], place: torch.device
) -> None:
    make = REFUSED.get(name, inference_tensor)
    ours, theirs = (make(torch.ones(5, 6, 2, requires_grad=True)) for _ in range(2))
    with pytest.raises(RuntimeError) as expected:
        torch.nn.functional.dropout(theirs, 0.5, True, True)
    with pytest.raises(RuntimeError) as error:
        function(ours, 0.5, True, True)
    assert str(error.value) == str(expected.value)
    if name != "inference tensor":  # those torch's own operators change first
        assert torch.equal(ours, torch.ones_like(ours))


@pytest.mark.parametrize("known", [True, False], ids=["a plain view", "any view"])
def test_a_view_that_may_not_be_plain_is_copied_to(
    known: bool, place: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fallback for a torch that does not say what kind of view it is."""
    if not known:
        monkeypatch.setattr("fused_dropout._ops._in_place.is_plain_view", lambda view: False)
    input = torch.ones(10, 6, dtype=torch.float64, requires_grad=True)
    whole = input * 2
    part = whole[2:, ::2]
    assert functional.dropout(part, 0.5, True, True, seed=3) is part
    scale = functional.dropout(torch.ones(8, 3, dtype=torch.float64), 0.5, True, seed=3)
    expected = torch.full((10, 6), 2.0, dtype=torch.float64)
    expected[2:, ::2] *= scale
    assert torch.equal(whole, expected)
    assert torch.equal(torch.autograd.grad(whole.sum(), input)[0], expected)


def test_in_place_on_a_view_changes_the_whole(place: torch.device) -> None:
    """The gradient of the part is masked, that of the rest is not."""
    kept = fused_dropout.mask((1, 40), 0.5, seed=3).view(10, 4)
    for cut in (lambda x: x[:, 1:5], lambda x: x.t()[1:5].t()):
        input = torch.ones(10, 6, requires_grad=True)
        whole = input * 1
        part = cut(whole)
        assert functional.dropout(part, 0.5, inplace=True, seed=3) is part
        expected = torch.ones(10, 6)
        expected[:, 1:5] = 2.0 * kept
        assert torch.equal(whole, expected)
        (gradient,) = torch.autograd.grad(whole.sum(), input)
        assert torch.equal(gradient, expected)


def test_in_place_raises_the_version(place: torch.device) -> None:
    """Autograd notices that something which it had saved was overwritten."""
    input = torch.ones(5, 6, requires_grad=True)
    saved = input.exp()
    output = functional.dropout(saved, 0.5, True, True)
    assert output is saved
    assert saved._version == 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


# ---- torch.library


def test_opcheck(place: torch.device) -> None:
    """Schema, aliasing and fake kernels, on more layouts than the table of operators has."""
    ops = torch.ops.fused_dropout
    state = fused_dropout.make_rng_state(1, 2)
    for shape, dims in (((), []), ((0, 3), [1]), ((2, 20, 3, 4), [2, 3]), ((2, 20, 3, 4), [])):
        for dtype in (torch.float32, torch.bfloat16):
            for _, input in layouts(random_tensor(shape, dtype)):
                for residual in (None, torch.ones_like(input)):
                    arguments = (input, residual, state, 0.3, 1.5, dims)
                    for op in (ops.dropout.default, ops.dropout_.default):
                        tests = ("test_schema", "test_faketensor")
                        torch.library.opcheck(op, arguments, test_utils=tests)


# ---- forward mode


def test_forward_mode_with_a_drawn_mask(place: torch.device) -> None:
    """torch.autograd.forward_ad: tangents pass where elements are kept, whatever was drawn."""
    torch.manual_seed(5)
    for name, function in FUNCTIONS.items():
        ones = torch.ones(4, 5, 20, 3)
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(ones, 2 * ones)
            output, tangent = torch.autograd.forward_ad.unpack_dual(function(dual, 0.5, True))
        kept = output == output.max()
        assert kept.any() and not kept.all(), name
        slope = functional_alpha(0.5)[0] if "alpha" in name else 2.0
        assert torch.equal(tangent != 0, kept), name
        torch.testing.assert_close(tangent[kept], torch.full_like(tangent[kept], 2 * slope))


# ---- where the randomness comes from


def test_nothing_is_drawn_where_nothing_is_random(place: torch.device) -> None:
    before = generator_state(place)
    for name, function in FUNCTIONS.items():
        for p, training in ((0.3, False), (0.0, True), (1.0, True), (1e-9, True)):
            for inplace in (False, True):
                function(torch.ones(SHAPE), p, training, inplace)
        if name != "dropout1d":
            function(torch.ones(3, 0, 5, 6), 0.3, True)
    assert torch.equal(generator_state(place), before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_dtype(dtype: torch.dtype, place: torch.device) -> None:
    """As torch's own: dropout computes in the dtype that it is given."""
    linear, layer = torch.nn.Linear(30, 20), fused_dropout.nn.Dropout(0.3)
    input = random_tensor((4, 30)).requires_grad_()
    with torch.autocast(place.type, dtype=dtype):
        assert layer(linear(input)).dtype == dtype
        assert layer(input).dtype == torch.float32
        layer(linear(input)).float().sum().backward()
    assert input.grad.dtype == torch.float32
