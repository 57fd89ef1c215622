"""bias_act_dropout_add: its mask, bad input, and its module."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from support.bias_act_dropout_add import random_operands
from torch import Tensor

import fused_dropout
from fused_dropout import reference
from fused_dropout._core import extension
from fused_dropout.functional import bias_act_dropout_add
from fused_dropout.nn import BiasActDropoutAdd

# ---- the mask -----------------------------------------------------------------------------------


def draw(p: float = 0.5, training: bool = True, **kwargs: object) -> Tensor:
    return bias_act_dropout_add(torch.ones(6, 50), None, None, p, "none", training, **kwargs)


def test_the_mask_is_that_of_dropout(backend: torch.device) -> None:
    kept = fused_dropout.mask(300, 0.1, seed=3).view(6, 50)
    assert torch.equal(draw(0.1, seed=3) != 0, kept)


def test_rate_and_gradient_mask(place: torch.device) -> None:
    """The kept count is binomial; a false alarm at 5.6 standard deviations has odds below 1e-7."""
    for p in (0.1, 0.5):
        input = torch.ones(1024, 1000, requires_grad=True)
        output = bias_act_dropout_add(input, None, None, p, seed=11)
        (d_input,) = torch.autograd.grad(output.sum(), input)
        assert torch.equal(d_input, output)
        q, kept = reference.keep_rate(p), (output != 0).double()
        z = (kept.mean() - q) / math.sqrt(q * (1 - q) / kept.numel())
        assert abs(float(z)) < 5.6
        for neighbour in (kept[:, 1:] * kept[:, :-1], kept[1:] * kept[:-1]):
            z = (neighbour.mean() - q**2) / math.sqrt(3 * q**2 * (1 - q) / neighbour.numel())
            assert abs(float(z)) < 5.6


# ---- bad input ----------------------------------------------------------------------------------

INPUT = torch.ones(4, 6)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"p": 1.5}, ValueError, r"p, the drop probability, has to be between 0 and 1"),
        ({"p": "half"}, TypeError, "p must be a float, got str"),
        ({"activation": "tanh"}, ValueError, "activation must be one of 'none', .*got 'tanh'"),
        ({"convention": "outverted"}, ValueError, "convention must be one of"),
        ({"seed": 1, "generator": torch.Generator()}, ValueError, "at most one of"),
        ({"input": [1.0]}, TypeError, "input must be a Tensor, got list"),
        ({"input": INPUT.long()}, RuntimeError, "input must have a dtype of float32"),
        ({"input": INPUT.to(torch.complex64)}, NotImplementedError, "input must have a dtype"),
        ({"input": INPUT.to_sparse()}, RuntimeError, "input must be a dense"),
        ({"bias": torch.ones(5)}, RuntimeError, r"bias must have shape \[6\], got \[5\]"),
        ({"bias": torch.ones(6, 1)}, RuntimeError, r"bias must have shape \[6\], got \[6, 1\]"),
        ({"bias": torch.ones(6).half()}, RuntimeError, "bias must have the dtype of input"),
        ({"bias": 1.0}, TypeError, "bias must be a Tensor, got float"),
        ({"bias": torch.ones(6, device="meta")}, RuntimeError, "bias must be on the device"),
        ({"residual": torch.ones(6)}, RuntimeError, r"residual must have shape \[4, 6\]"),
        ({"residual": INPUT.double()}, RuntimeError, "residual must have the dtype of input"),
        ({"input": torch.tensor(1.0), "bias": torch.ones(1)}, RuntimeError, "with a bias"),
    ],
)
def test_bad_arguments(changes: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bias_act_dropout_add(**{"input": INPUT, **changes})


def test_bad_operator_calls(place: torch.device) -> None:
    """A direct call never crashes the process."""
    ops = extension.operators()
    state = fused_dropout.make_rng_state(1)
    input = torch.ones(4, 6)
    for arguments, message in (
        ((input, torch.ones(5), None, state, 0.1, "gelu", 1.0), "bias must have shape"),
        ((input, None, torch.ones(6), state, 0.1, "gelu", 1.0), "residual must have shape"),
        ((input, None, None, state, 0.1, "tanh", 1.0), "activation must be none"),
        ((input, None, None, state, 2.0, "gelu", 1.0), "p must be a probability"),
        ((input, None, None, state[:1], 0.1, "gelu", 1.0), "rng_state must be"),
        ((input[0, 0], torch.ones(1), None, state, 0.1, "gelu", 1.0), "bias needs"),
    ):
        with pytest.raises((RuntimeError, ValueError), match=message):
            ops.bias_act_dropout_add(*arguments)
    for arguments, message in (
        ((input, None, None, state, 0.1, "gelu", 1.0), "needs its input"),
        ((input, torch.ones(4, 5), None, state, 0.1, "gelu", 1.0), "input must have shape"),
        ((input[0, 0], None, None, state, 0.1, "none", 1.0), "grad_output must have shape"),
    ):
        with pytest.raises((RuntimeError, ValueError), match=message):
            ops.bias_act_dropout_add_d_both(*arguments)


# ---- the module ---------------------------------------------------------------------------------


def test_module_is_the_function(place: torch.device) -> None:
    input, bias, residual, _ = random_operands((5, 12), torch.float32)
    layer = BiasActDropoutAdd(12, 0.3, "gelu", convention="paper")
    assert not layer.bias.any()
    with torch.no_grad():
        layer.bias.copy_(bias)
    torch.manual_seed(0)
    ours = layer(input, residual)
    torch.manual_seed(0)
    assert torch.equal(
        ours, bias_act_dropout_add(input, bias, residual, 0.3, "gelu", convention="paper")
    )
    layer.eval()
    expected = F.gelu(input + bias) * reference.keep_rate(0.3)
    torch.testing.assert_close(layer(input), expected)


def test_module_takes_over_a_linear_layer_s_bias(place: torch.device) -> None:
    linear = torch.nn.Linear(7, 12)
    layer = BiasActDropoutAdd(12, activation="gelu").eval()
    with torch.no_grad():
        layer.bias.copy_(linear.bias)
    input = torch.ones(3, 7)
    torch.testing.assert_close(layer(input @ linear.weight.t()), F.gelu(linear(input)))


def test_module_repr_pickle_copy_and_state() -> None:
    layer = BiasActDropoutAdd(12, 0.3, "silu", dtype=torch.float64)
    assert repr(layer) == "BiasActDropoutAdd(12, p=0.3, activation='silu', bias=True)"
    bare = BiasActDropoutAdd(12, bias=False, convention="paper")
    assert repr(bare) == (
        "BiasActDropoutAdd(12, p=0.1, activation='none', bias=False, convention='paper')"
    )
    assert (list(layer.state_dict()), list(bare.state_dict())) == (["bias"], [])
    for twin in (pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer)):
        assert repr(twin) == repr(layer)
        assert torch.equal(twin.bias, layer.bias)
        assert twin.bias.dtype == torch.float64
    assert bare(torch.ones(2, 12)).shape == (2, 12)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1,), ValueError, "features must be in"),
        ((2.5,), TypeError, "features must be an int"),
        ((4, 2.0), ValueError, "drop probability"),
        ((4, 0.1, "swish"), ValueError, "activation must be one of"),
    ],
)
def test_bad_modules(arguments: tuple, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        BiasActDropoutAdd(*arguments)


def test_module_of_the_wrong_size() -> None:
    with pytest.raises(RuntimeError, match=r"input must have shape \[..., 4\], got \[2, 3\]"):
        BiasActDropoutAdd(4, bias=False)(torch.ones(2, 3))
