"""Every mistake gets an exception that names the argument, the value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import fused_dropout
from fused_dropout import functional as F
from fused_dropout import nn
from fused_dropout._core import extension
from fused_dropout.functional import dropconnect_linear
from fused_dropout.nn import DropConnectLinear

HALF = torch.ones(4, 8, dtype=torch.float16)


def good() -> dict[str, Tensor]:
    return {"input": torch.ones(3, 8), "weight": torch.ones(4, 8), "bias": torch.ones(4)}


def moved(arguments: dict, place: torch.device) -> dict:
    """The arguments with their tensors on `place`, but for those that are on no device."""
    return {
        name: value.to(place) if isinstance(value, Tensor) and not value.is_meta else value
        for name, value in arguments.items()
    }


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"p": -0.5}, ValueError, "p, the drop probability.*but got -0.5"),
        ({"p": math.nan}, ValueError, "but got nan"),
        ({"p": None}, TypeError, "p must be a float, got NoneType"),
        ({"mask": "rows"}, ValueError, "mask must be 'row', 'example', 'batch' or an int.*'rows'"),
        ({"mask": 0}, ValueError, "got 0"),
        ({"mask": -2}, ValueError, "got -2"),
        ({"mask": True}, ValueError, "got True"),
        ({"mask": 1.5}, ValueError, "got 1.5"),
        ({"mask": torch.tensor(2.5)}, ValueError, r"mask must be.*got tensor\(2.5"),
        ({"mask": torch.tensor(2)}, ValueError, r"mask must be.*got tensor\(2"),
        ({"mask": np.ones(2)}, ValueError, r"mask must be.*got array\("),
        ({"convention": np.ones(2)}, ValueError, r"convention must be.*got array\("),
        ({"p": torch.ones((), device="meta")}, TypeError, "p must be a float, got Tensor"),
        ({"seed": np.array([3])}, TypeError, "seed must be an int, got ndarray"),
        ({"rng_state": torch.ones(2).long().to_sparse()}, RuntimeError, "rng_state must be a d"),
        ({"convention": "scaled"}, ValueError, "convention must be one of.*'scaled'"),
        ({"mask_storage": "bytes"}, ValueError, "mask_storage must be one of.*'bytes'"),
        ({"seed": 1, "generator": torch.Generator()}, ValueError, "generator and seed"),
        ({"seed": 1, "rng_state": torch.zeros(2).long()}, ValueError, "seed and rng_state"),
        ({"seed": 1.0}, TypeError, "seed must be an int, got float"),
        ({"seed": 2**65}, ValueError, f"got {2**65}"),
        ({"rng_state": torch.zeros(3).long()}, ValueError, r"int64 tensor of shape \[2\]"),
        ({"rng_state": torch.zeros(2)}, ValueError, "got torch.float32"),
        ({"rng_state": [0, 1]}, TypeError, "rng_state must be a Tensor, got list"),
        ({"input": torch.ones(3, 8).long()}, RuntimeError, "input must have a dtype.*int64"),
        ({"input": torch.ones(3, 8).cfloat()}, RuntimeError, "input.*complex64"),
        ({"input": [1.0]}, TypeError, "input must be a Tensor, got list"),
        ({"input": torch.ones(3, 9)}, RuntimeError, r"weight.shape\[1\] = 8, got \[3, 9\]"),
        ({"input": torch.tensor(1.0)}, RuntimeError, r"input must have shape.*got \[\]"),
        ({"weight": torch.ones(8)}, RuntimeError, r"weight must have shape.*got \[8\]"),
        ({"weight": torch.ones(2, 4, 8)}, RuntimeError, r"got \[2, 4, 8\]"),
        ({"weight": HALF}, RuntimeError, "weight must have the dtype of input.*float16"),
        ({"weight": torch.ones(4, 8, device="meta")}, RuntimeError, "weight must be on.*got meta"),
        ({"bias": torch.ones(4, device="meta")}, RuntimeError, "bias must be on.*got meta"),
        ({"rng_state": torch.zeros(2, device="meta").long()}, RuntimeError, "must be on.*got meta"),
        ({"bias": torch.ones(5)}, RuntimeError, r"bias must have shape \[4\], got \[5\]"),
        ({"bias": torch.ones(4, 1)}, RuntimeError, r"got \[4, 1\]"),
        ({"bias": torch.ones(4).double()}, RuntimeError, "bias must have the dtype.*float64"),
        ({"bias": 1.0}, TypeError, "bias must be a Tensor, got float"),
        ({"weight": None}, TypeError, "weight must be a Tensor, got NoneType"),
        ({"generator": 5}, TypeError, "generator must be a torch.Generator, got int"),
        ({"input": torch.ones(3, 8).to_sparse()}, RuntimeError, "input must be a dense.*sparse"),
        ({"weight": torch.ones(4, 8).to_sparse_csr()}, RuntimeError, "weight must be a dense"),
        ({"bias": torch.ones(4).to_sparse()}, RuntimeError, "bias must be a dense"),
    ],
)
def test_functional(change: dict, error: type[Exception], text: str, place: torch.device) -> None:
    with pytest.raises(error, match=text):
        dropconnect_linear(**{**good(), **moved(change, place)})


X = torch.ones(4, 3)
FLOAT8 = X.to(torch.float8_e4m3fn)
NESTED = torch.nested.nested_tensor([torch.tensor([5, 7])])


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: F.bias_act_dropout_add(None), TypeError, "input must be a Tensor, got NoneType"),
        (lambda: F.bias_act_dropout_add(X, 1.0), TypeError, "bias must be a Tensor, got float"),
        (lambda: nn.BiasActDropoutAdd(4)(object()), TypeError, "input must be a Tensor"),
        (lambda: nn.ConcreteDropout()("x"), TypeError, "input must be a Tensor, got str"),
        (lambda: F.drop_block1d(X, 0.5, 2, normalize=np.ones(2)), ValueError, "normalize must be"),
        (lambda: nn.DropBlock1d(0.5, 2, gamma=np.ones(2)), ValueError, "gamma must be one of"),
        (lambda: F.dropout2d(X, torch.ones((), device="meta")), TypeError, "p must be a float"),
        (lambda: F.dropout(X, seed=np.array([3])), TypeError, "seed must be an int, got ndarray"),
        (lambda: F.dropout(X, rng_state=NESTED), RuntimeError, "rng_state must be a dense.*nested"),
        (lambda: F.drop_path_add(X, X.to("meta")), RuntimeError, "branch must be on.*got meta"),
        (lambda: F.drop_path(X.cfloat(), 0.5, True), NotImplementedError, "x must have a dtype"),
        (lambda: F.drop_path_add(X.int(), X.int(), 0.5, True), RuntimeError, "branch must have a"),
        (lambda: F.drop_path_add(X, FLOAT8, 0.5, True), RuntimeError, "branch must have a.*8_e4m3"),
        (lambda: fused_dropout.mask(3, 0.5, seed=0, offset=np.ones(2)), TypeError, "offset must"),
        (lambda: fused_dropout.mask((2**32, 2**32), 0.5, seed=0), ValueError, "shape must be ints"),
    ],
)
def test_other_functions(call: Callable[[], object], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call()


@pytest.mark.parametrize("layer", [nn.Dropout1d, nn.Dropout3d, nn.AlphaDropout])
def test_layers_refuse_nan(layer: type[torch.nn.Module]) -> None:
    with pytest.raises(ValueError, match="but got nan"):
        layer(math.nan)


class Undispatched:
    """It has `__torch_function__` and implements nothing."""

    @classmethod
    def __torch_function__(cls, *args: object, **keys: object) -> object:
        return NotImplemented


@pytest.mark.parametrize("odd", [Undispatched(), torch.Tensor], ids=["object", "torch.Tensor"])
def test_types_that_refuse_the_dispatch(odd: object) -> None:
    with pytest.raises(TypeError, match=r"no implementation found.*__torch_function__") as theirs:
        torch.nn.functional.dropout(odd)
    for function in (F.dropout, F.gaussian_dropout, F.bias_act_dropout_add):
        with pytest.raises(TypeError) as ours:
            function(odd)
        name = f"{function.__module__}.{function.__name__}"
        assert str(ours.value) == str(theirs.value).replace("torch.nn.functional.dropout", name)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"p": 1.01}, ValueError, "1.01"),
        ({"mask": 0}, ValueError, "got 0"),
        ({"convention": "x"}, ValueError, "'x'"),
        ({"mask_storage": "x"}, ValueError, "'x'"),
    ],
)
def test_module(change: dict, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        DropConnectLinear(8, 4, **change)


def test_a_last_smaller_group_of_rows_is_fine(place: torch.device) -> None:
    assert dropconnect_linear(**good(), mask=2).shape == (3, 4)
    for rows in (10**12, 2**62, 2**63 - 1, 2**70):
        everything = dropconnect_linear(**good(), mask=rows, seed=1)
        assert torch.equal(everything, dropconnect_linear(**good(), mask="batch", seed=1))
    operator = extension.operators().dropconnect_linear
    state = torch.zeros(2, dtype=torch.int64)
    output = operator(*good().values(), state, None, 0.5, 2**63 - 1, 2.0)
    assert output.shape == (3, 4)


def test_numpy_integers_are_integers(place: torch.device) -> None:
    three = np.int64(3)
    assert dropconnect_linear(**good(), mask=three, seed=three).shape == (3, 4)
    assert fused_dropout.mask((three, 4), 0.5, seed=three).shape == (3, 4)


def test_autocast_does_not_hide_mistakes(place: torch.device) -> None:
    arguments = {**good(), "bias": 1.0}
    with torch.autocast(place.type, torch.bfloat16), pytest.raises(TypeError, match="bias must be"):
        dropconnect_linear(**arguments)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"p": 2.0}, RuntimeError, "^p must be a probability"),
        ({"rows_per_mask": 0}, RuntimeError, "^rows_per_mask must be at least 1"),
        ({"rng_state": torch.zeros(3).long()}, RuntimeError, "rng_state must be"),
        ({"weight": torch.ones(4, 9)}, RuntimeError, "weight must have shape"),
        ({"weight": HALF}, RuntimeError, "weight must have dtype"),
        ({"input": torch.ones(3, 2, 8)}, RuntimeError, "must be matrices"),
        ({"bias": torch.ones(3)}, RuntimeError, "bias must have shape"),
    ],
)
@pytest.mark.parametrize("name", ["dropconnect_linear", "dropconnect_linear_with_bits"])
def test_raw_operator_never_crashes(
    name: str, change: dict, error: type[Exception], text: str, place: torch.device
) -> None:
    operator = getattr(extension.operators(), name)
    arguments = {**good(), "rng_state": torch.zeros(2, dtype=torch.int64)}
    arguments.update({"p": 0.5, "rows_per_mask": 1, "scale": 2.0})
    if name == "dropconnect_linear":
        arguments["mask_bits"] = None
    with pytest.raises(error, match=text):
        operator(**{**arguments, **moved(change, place)})


def test_mask_bits_of_another_layer(place: torch.device) -> None:
    bits, state = torch.zeros(4).int(), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="mask_bits must be"):
        extension.operators().dropconnect_linear(*good().values(), state, bits, 0.5, 1, 2.0)


@pytest.mark.parametrize("operator", ["forward", "d_input", "d_weight", "d_both"])
def test_unaligned_mask_bits_of_the_raw_operators(operator: str, place: torch.device) -> None:
    """Groups of four words are read whole, so a view may not start within one."""
    operators, state = extension.operators(), torch.zeros(2, dtype=torch.int64)
    input, weight, bias = good().values()
    grad = torch.ones(3, 4)
    call, operands = {
        "forward": (operators.dropconnect_linear, (input, weight, bias)),
        "d_input": (operators.dropconnect_linear_d_input, (grad, weight)),
        "d_weight": (operators.dropconnect_linear_d_weight, (grad, input)),
        "d_both": (operators.dropconnect_linear_d_both, (grad, input, weight)),
    }[operator]
    bits = operators.dropconnect_mask_bits(weight, state, 3, 0.5)
    room = torch.zeros(bits.numel() + 4, dtype=torch.int32)
    for words in range(5):
        view = room[words : words + bits.numel()].view_as(bits).copy_(bits)
        if words % 4 == 0:
            expected = call(*operands, state, bits, 0.5, 1, 2.0)
            found = call(*operands, state, view, 0.5, 1, 2.0)
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
            continue
        text = f"mask_bits must start at.*multiple of 16 bytes, got.*remainder {4 * words} "
        with pytest.raises(RuntimeError, match=text):
            call(*operands, state, view, 0.5, 1, 2.0)


def test_integer_operands_of_the_raw_operator(place: torch.device) -> None:
    state = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="expected float32"):
        torch.ops.fused_dropout.dropconnect_linear(
            torch.ones(3, 8).long(), torch.ones(4, 8).long(), None, state, None, 0.5, 1, 2.0
        )


@pytest.mark.skipif(bool(extension.build_info()["cuda"]), reason="this build has CUDA kernels")
def test_cuda_tensor_on_a_build_without_cuda() -> None:
    with pytest.raises(RuntimeError, match="built without CUDA kernels") as caught:
        extension.require_backend(torch.device("cuda:0"))
    assert "FUSED_DROPOUT_CUDA=1 pip install" in str(caught.value)


def test_device_of_another_kind() -> None:
    with pytest.raises(RuntimeError, match="kernels for cpu and cuda"):
        extension.require_backend(torch.device("xpu"))


def test_a_nested_input_is_named(place: torch.device) -> None:
    nested = torch.nested.nested_tensor([torch.ones(8)])
    for mask in ("row", "example"):
        with pytest.raises(RuntimeError, match="input must be a dense"):
            dropconnect_linear(nested, torch.ones(4, 8), mask=mask)


def test_no_tensor_to_write_to(place: torch.device) -> None:
    """A schema lets None through where a tensor is changed."""
    residual, state = torch.ones(3, requires_grad=True), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(TypeError, match="input must be a Tensor, got None"):
        extension.operators().dropout_(None, residual, state, 0.5, 2.0)
