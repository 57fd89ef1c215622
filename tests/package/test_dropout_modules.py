"""The dropout modules and functions stand in for torch's: constructors, repr, copies, errors."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
import warnings
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import rnn

import fused_dropout
from fused_dropout import functional, nn, reference

NAMES = ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "AlphaDropout", "FeatureAlphaDropout")
FUNCTIONS = (
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "alpha_dropout",
    "feature_alpha_dropout",
)
SHAPES = {
    "Dropout": (20, 30),
    "Dropout1d": (20, 30, 4),
    "Dropout2d": (20, 30, 4, 5),
    "Dropout3d": (20, 30, 2, 3, 2),
    "AlphaDropout": (20, 30),
    "FeatureAlphaDropout": (20, 30, 4, 5),
    "LockedDropout": (20, 30, 4),
}

# ---- modules


@pytest.mark.parametrize("name", NAMES)
def test_module_is_torch_s(name: str) -> None:
    ours, torch_s = getattr(nn, name), getattr(torch.nn, name)
    assert issubclass(ours, torch_s)
    for arguments, keys in (
        ((), {}),
        ((0.3,), {}),
        ((0.1, True), {}),
        ((), {"p": 1, "inplace": True}),
    ):
        layer, other = ours(*arguments, **keys), torch_s(*arguments, **keys)
        assert repr(layer) == f"fused_dropout.nn.{other!r}"
        assert (layer.p, layer.inplace, layer.training) == (other.p, other.inplace, True)
        assert layer.state_dict() == {}
    for wrong in (-0.1, 1.1, "a", None):
        with pytest.raises((ValueError, TypeError)) as theirs:
            torch_s(wrong)
        with pytest.raises(theirs.type):
            ours(wrong)


def test_repr_of_our_own_settings() -> None:
    layer = nn.Dropout(0.2, broadcast_dims=[1, -1], convention="paper")
    expected = "Dropout(p=0.2, inplace=False, broadcast_dims=(1, -1), convention='paper')"
    assert repr(layer) == f"fused_dropout.nn.{expected}"
    expected = "fused_dropout.nn.LockedDropout(p=0.2, inplace=False, batch_first=False)"
    assert repr(nn.LockedDropout(0.2)) == expected
    assert repr(type("Mine", (nn.Dropout,), {})(0.2)) == "Mine(p=0.2, inplace=False)"
    assert isinstance(nn.LockedDropout(), _DropoutNd)


RATES = [
    *(True, False, 0, 1, np.float32(0.5), np.float64(0.5), np.int64(1), np.bool_(True)),
    *(torch.tensor(value) for value in (0.5, 1, True, 1.5, [0.5], [0.5, 0.5], 0.5 + 0j)),
    torch.tensor(0.5, dtype=torch.float64),
    torch.tensor(0.5, requires_grad=True),
    torch.nn.Parameter(torch.tensor(0.5)),
    *(-0.1, 1.1, 2, -1, 10**400, -(10**400), 10**5000, math.inf, math.nan),
    *(np.array(0.5), np.array([0.5]), "0.5", None, 0.5 + 0j, Decimal("0.5"), [0.5]),
]


@pytest.mark.parametrize("p", RATES, ids=range(len(RATES)))
def test_rates_that_torch_takes(p: Any) -> None:
    x = torch.ones(4, 5)
    try:
        torch.nn.functional.dropout(x, p)
    except (ValueError, TypeError, RuntimeError, NotImplementedError):
        with pytest.raises((ValueError, TypeError), match=r"^p"):
            functional.dropout(x, p)
        with pytest.raises((ValueError, TypeError), match=r"^p"):
            nn.Dropout(p)
    else:
        expected = functional.dropout(x, float(p), seed=1)
        assert torch.equal(functional.dropout(x, p, seed=1), expected)
        torch.manual_seed(1)
        output = nn.Dropout(p)(x)
        torch.manual_seed(1)
        assert torch.equal(output, nn.Dropout(float(p))(x))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_dtypes_that_torch_refuses(name: str) -> None:
    """With the same class of error."""
    dtypes = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    refused = 0
    for dtype in sorted(dtypes, key=str):
        try:
            x = torch.zeros(SHAPES.get(name.capitalize(), (4, 5))).to(dtype)
        except (NotImplementedError, RuntimeError):
            continue  # a dtype without tensors to speak of
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                getattr(torch.nn.functional, name)(x, 0.5, True)
            except RuntimeError as error:
                refused += 1
                with pytest.raises(RuntimeError) as ours:
                    getattr(functional, name)(x, 0.5, True)
                assert ours.type is type(error), dtype
    assert refused > 10


def test_wrong_settings() -> None:
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            nn.Dropout(p)
        with pytest.raises(ValueError, match="between 0 and 1"):
            nn.LockedDropout(p)
    with pytest.raises(ValueError, match="convention must be one of 'inverted', 'paper'"):
        nn.Dropout(convention="flax")
    with pytest.raises(TypeError, match="broadcast_dims"):
        nn.Dropout(broadcast_dims=("batch",))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
@pytest.mark.parametrize(
    "layer",
    [
        *(getattr(nn, name)(0.4) for name in NAMES),
        nn.Dropout(0.4, broadcast_dims=(0,), convention="paper"),
        nn.LockedDropout(0.4, batch_first=True),
    ],
    ids=repr,
)
def test_training_evaluation_and_copies(
    layer: torch.nn.Module, clone: Callable, place: torch.device
) -> None:
    input = torch.randn(SHAPES[type(layer).__name__])
    layer.train()
    assert not torch.equal(layer(input), layer(input)), "every call draws its own mask"
    other = clone(layer)
    assert repr(other) == repr(layer)
    torch.manual_seed(1)
    expected = layer(input)
    torch.manual_seed(1)
    assert torch.equal(other(input), expected)
    layer.eval()
    if getattr(layer, "convention", "") == "paper":
        assert torch.equal(layer(input), input * reference.keep_rate(layer.p))
    else:
        assert layer(input) is input


def functional_of(layer: torch.nn.Module) -> Callable[..., Tensor]:
    names = dict(zip(NAMES, FUNCTIONS, strict=True))
    return getattr(functional, names.get(type(layer).__name__, "locked_dropout"))


@pytest.mark.parametrize("name", [*NAMES, "LockedDropout"])
def test_module_calls_its_function(name: str, place: torch.device) -> None:
    layer = getattr(nn, name)(0.3)
    input = torch.randn(SHAPES[name])
    torch.manual_seed(1)
    output = layer(input)
    torch.manual_seed(1)
    assert torch.equal(output, functional_of(layer)(input, 0.3, True))


@pytest.mark.parametrize("name", [*NAMES, "LockedDropout"])
def test_inplace(name: str, place: torch.device) -> None:
    """torch's alpha modules take the argument and ignore it, and so do ours."""
    layer = getattr(nn, name)(0.3, inplace=True)
    input = torch.randn(SHAPES[name])
    writes = "Alpha" not in name
    assert (layer(input) is input) == writes
    if not writes:
        assert getattr(torch.nn, name)(0.3, inplace=True)(input) is not input


def test_broadcast_dims_of_the_module(place: torch.device) -> None:
    output = nn.Dropout(0.5, broadcast_dims=(-1,))(torch.ones(50, 6))
    assert torch.equal(output, output[:, :1].expand(50, 6))
    output = nn.LockedDropout(batch_first=True)(torch.ones(5, 6, 40))
    assert torch.equal(output, output[:, :1].expand(5, 6, 40))


def test_a_network_of_them_trains(place: torch.device) -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), nn.Dropout2d(0.2), torch.nn.SELU(), nn.AlphaDropout(0.1),
        torch.nn.Flatten(), nn.Dropout(0.3, inplace=True), torch.nn.Linear(8 * 36, 2),
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    losses = []
    for _ in range(40):
        input = torch.randn(32, 1, 8, 8)
        target = (input[:, 0, :, :4].mean((1, 2)) > input[:, 0, :, 4:].mean((1, 2))).long()
        loss = torch.nn.functional.cross_entropy(network(input), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


# ---- functions


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature_starts_as_torch_s(name: str) -> None:
    ours = inspect.signature(getattr(functional, name)).parameters.values()
    torch_s = inspect.signature(getattr(torch.nn.functional, name)).parameters.values()
    for a, b in zip(ours, torch_s, strict=False):
        assert (a.name, a.default) == (b.name, b.default)
    rest = list(ours)[len(torch_s) :]
    assert all(parameter.kind == parameter.KEYWORD_ONLY for parameter in rest)


def outcome(function: Callable[..., Tensor], input: Tensor, *arguments: object) -> tuple:
    """What can be seen from outside, but for the numbers: result or exception, and warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            output = function(input, *arguments)
        except Exception as error:
            # On a GPU torch says NotImplementedError, which is a RuntimeError, for more dtypes.
            on_gpu = input.is_cuda and isinstance(error, RuntimeError)
            return RuntimeError if on_gpu else type(error), len(caught)
    # torch's dropout1d and dropout3d return a view of the input where there is no batch.
    is_same = output.data_ptr() == input.data_ptr() and output.numel() > 0
    facts = (output.shape, output.dtype, output.stride(), output.requires_grad, is_same)
    return (*facts, len(caught))


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.float64,
        torch.int64,
        torch.uint8,
        torch.bool,
        torch.complex64,
    ],
    ids=str,
)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_outcomes_are_torch_s(name: str, dtype: torch.dtype, place: torch.device) -> None:
    """Shapes, strides, identity, exceptions and warnings, for good and bad input of every kind."""
    ours, torch_s = getattr(functional, name), getattr(torch.nn.functional, name)
    shapes = ((), (3,), (0,), (2, 3), (2, 0), (2, 3, 4), (2, 3, 4, 5), (2, 3, 4, 5, 2), (2,) * 6)
    for shape in shapes:
        for p in (0, 0.0, 0.3, 1, 1.0, -0.1, 1.5, "a", None):
            for training, inplace in ((True, False), (True, True), (False, False), (False, True)):
                arguments = (p, training, inplace)
                expected = outcome(torch_s, torch.zeros(shape, dtype=dtype), *arguments)
                found = outcome(ours, torch.zeros(shape, dtype=dtype), *arguments)
                assert found == expected, (shape, arguments)
            if dtype.is_floating_point:
                leaves = (torch.zeros(shape, dtype=dtype, requires_grad=True) for _ in range(2))
                expected, found = (
                    outcome(function, leaf, p, True, False)
                    for function, leaf in zip((torch_s, ours), leaves, strict=True)
                )
                assert found == expected, (shape, p, "requires_grad")


def first_sentences(function: Callable[..., Tensor], input: Tensor) -> list[tuple[type, str]]:
    """The classes and first sentences of the warnings, and of the error if any."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        problems: list[Exception | Warning] = []
        try:
            function(input, 0.5, True)
        except RuntimeError as error:
            problems.append(error)
    messages = [warning.message for warning in caught if isinstance(warning.message, Warning)]
    return [(type(it), str(it).split(". ")[0].split("\n")[0]) for it in [*messages, *problems]]


@pytest.mark.parametrize("dimensions", range(7))
@pytest.mark.parametrize("name", FUNCTIONS)
def test_filters_for_torch_s_warnings_match(name: str, dimensions: int) -> None:
    input = torch.ones([2] * dimensions)
    expected = first_sentences(getattr(torch.nn.functional, name), input)
    found = first_sentences(getattr(functional, name), input)
    assert len(found) == len(expected)
    for (kind, text), (torch_s_kind, torch_s_text) in zip(found, expected, strict=True):
        assert kind is torch_s_kind
        assert text.startswith(torch_s_text)


def test_p_one_gives_zeros_of_every_dtype(place: torch.device) -> None:
    for dtype in (torch.float32, torch.float16, torch.int64, torch.bool, torch.complex64):
        for inplace in (False, True):
            input = torch.ones(3, 4).to(dtype)
            output = functional.dropout(input, 1.0, True, inplace)
            assert (output is input) == inplace
            assert not output.any()
            assert bool(input.any()) != inplace


@pytest.mark.parametrize("function", [functional.dropout, functional.alpha_dropout])
def test_p_that_rounds_to_0_or_1(function: Callable[..., Tensor], place: torch.device) -> None:
    """The keep rate has 16 binary digits."""
    input = torch.randn(100)
    assert torch.equal(function(input, 2.0**-18, True), input)
    assert not function(input, 1 - 2.0**-18, True).any()


def test_wrong_arguments(place: torch.device) -> None:
    input = torch.ones(2, 3)
    for function in (functional.dropout, functional.dropout2d, functional.alpha_dropout):
        with pytest.raises(TypeError, match="input must be a Tensor"):
            function([1.0])
        with pytest.raises(RuntimeError, match="dense"):
            function(input.to_sparse())
        with pytest.raises(ValueError, match="between 0 and 1"):
            function(input, float("nan"))
    with pytest.raises(IndexError, match=r"broadcast_dims must be in \[-2, 1\], got 2"):
        functional.dropout(input, broadcast_dims=(2,))
    with pytest.raises(ValueError, match="each dimension once"):
        functional.dropout(input, broadcast_dims=(1, -1))
    with pytest.raises(TypeError, match="broadcast_dims"):
        functional.dropout(input, broadcast_dims=(0.5,))
    with pytest.raises(RuntimeError, match=r"\[T, N, ...\]"):
        functional.locked_dropout(torch.ones(3))
    for function in (functional.locked_dropout, nn.LockedDropout()):
        with pytest.raises(TypeError, match="input must be a Tensor, got str"):
            function("x")
    with pytest.raises(RuntimeError, match="dtype"):
        functional.dropout(torch.ones(3, dtype=torch.int32))


def test_wrong_arguments_of_the_operators(place: torch.device) -> None:
    """They are reachable without the functions, and must not crash."""
    ops = torch.ops.fused_dropout
    state = fused_dropout.make_rng_state(1)
    input, settings = torch.ones(2, 3), (0.5, 2.0)
    with pytest.raises(RuntimeError, match="p must be a probability"):
        ops.dropout(input, None, state, 1.5, 2.0)
    for dims in ([2], [-1]):
        with pytest.raises(RuntimeError, match="shared_dims"):
            ops.dropout(input, None, state, 0.5, 2.0, dims)
    with pytest.raises(RuntimeError, match="residual must have shape"):
        ops.dropout(input, torch.ones(3), state, *settings)
    with pytest.raises(RuntimeError, match="residual must have dtype"):
        ops.dropout_(input, input.double(), state, *settings)
    with pytest.raises(RuntimeError, match="rng_state"):
        ops.dropout(input, None, state.int(), *settings)
    with pytest.raises(RuntimeError, match="expected float32"):
        ops.dropout(input.int(), None, state, *settings)
    with pytest.raises(RuntimeError, match="single memory location"):
        ops.dropout_(torch.ones(3).expand(2, 3), None, state, *settings)


# ---- packed sequences


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize("features", [(), (5,), (2, 3)])
@pytest.mark.parametrize("inplace", [True, False])
def test_packed_sequences_drop_as_padded_ones(
    enforce_sorted: bool, features: tuple[int, ...], inplace: bool, place: torch.device
) -> None:
    lengths = [6, 4, 4, 1] if enforce_sorted else [4, 1, 6, 4]
    padded = (torch.rand(6, 4, *features) + 1).requires_grad_()

    def packed(input: Tensor) -> rnn.PackedSequence:
        return rnn.pack_padded_sequence(input * 1, lengths, enforce_sorted=enforce_sorted)

    layer = nn.LockedDropout(0.5, inplace)
    torch.manual_seed(3)
    given = packed(padded)
    output = layer(given)
    torch.manual_seed(3)
    expected = packed(nn.LockedDropout(0.5)(padded))
    assert torch.equal(output.data, expected.data)
    assert 0 < (output.data == 0).sum() < output.data.numel()
    assert (output.data is given.data) == inplace
    for ours, theirs in zip(output[1:], expected[1:], strict=True):
        assert ours is theirs is None or torch.equal(ours, theirs)
    (gradient,) = torch.autograd.grad(output.data.square().sum(), padded)
    (wanted,) = torch.autograd.grad(expected.data.square().sum(), padded)
    assert torch.equal(gradient, wanted)
    assert layer.eval()(given) is given
    again = functional.locked_dropout(packed(padded), 0.5, batch_first=True, seed=4)
    assert torch.equal(again.data, packed(functional.locked_dropout(padded, 0.5, seed=4)).data)
    with pytest.raises(ValueError, match="between 0 and 1"):
        functional.locked_dropout(given, 1.5)


def test_alpha_dropout_shares_its_mask_along_broadcast_dims(place: torch.device) -> None:
    input = torch.randn(5, 6, 7)
    torch.manual_seed(3)
    layer = nn.AlphaDropout(0.4, broadcast_dims=(0, -1))
    output = layer(input)
    torch.manual_seed(3)
    assert torch.equal(output, functional.alpha_dropout(input, 0.4, True, broadcast_dims=(0, 2)))
    floor = output == output.flatten().mode().values  # all dropped elements are equal
    assert torch.equal(floor, floor[:1, :, :1].expand_as(floor))
    assert 0 < floor.sum() < floor.numel()
    assert "broadcast_dims=(0, -1)" in repr(layer)
    with pytest.raises(IndexError, match="broadcast_dims"):
        functional.alpha_dropout(input, 0.4, True, broadcast_dims=(3,))
