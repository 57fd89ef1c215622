"""The operators in `torch.ops.fused_dropout`: what to call them with, and what they differentiate.

Rows of the table name the operators of an op; here is how each one is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fused_dropout._core import extension
from fused_dropout._core.rng import make_rng_state

Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Operator:
    """One operator.

    Attributes:
        name: the operator is `torch.ops.fused_dropout.<name>`.
        calls: draws the arguments of some calls, on torch's default device and in its default
            dtype. The float32 tensors among them may all be made float64.
        differentiable: the tensor arguments that it gives gradients of. The others with floating
            elements either have no influence on the result, or asking for their gradient raises.
    """

    name: str
    calls: Callable[[], list[Arguments]]
    differentiable: tuple[str, ...] = ()

    @property
    def overload(self) -> Any:
        """What torch calls the operator's only overload."""
        return getattr(extension.operators(), self.name).default

    @property
    def in_place(self) -> bool:
        return self.name.endswith("_")


@cache
def operators() -> tuple[Operator, ...]:
    """All rows."""
    epilogue, linear = "bias_act_dropout_add", "dropconnect_linear"
    return (
        Operator("dropout", _dropout, ("input", "residual")),
        Operator("dropout_", _dropout, ("input", "residual")),
        Operator("gaussian_dropout", _gaussian_dropout, ("input",)),
        Operator("gaussian_dropout_", _gaussian_dropout, ("input",)),
        Operator("gaussian_noise", _gaussian_noise, ("mean", "variance")),
        Operator("gaussian_noise_d_variance", _gaussian_noise, ("grad_output", "variance")),
        Operator("concrete_dropout", _concrete_dropout, ("input", "logit_p")),
        Operator(
            "concrete_dropout_backward", _concrete_dropout_backward,
            ("grad_output", "input", "logit_p"),
        ),
        Operator(epilogue, _epilogue, ("input", "bias", "residual")),
        Operator(f"{epilogue}_d_input", _epilogue_gradients, ("grad_output", "input", "bias")),
        Operator(f"{epilogue}_d_both", _epilogue_gradients, ("grad_output", "input", "bias")),
        Operator(linear, _linear, ("input", "weight", "bias")),
        Operator(f"{linear}_d_input", _linear_d_input, ("grad_output", "weight")),
        Operator(f"{linear}_d_weight", _linear_d_weight, ("grad_output", "input")),
        Operator(f"{linear}_d_both", _linear_d_both, ("grad_output", "input", "weight")),
        Operator(f"{linear}_d_bias", _linear_d_bias, ("grad_output",)),
        Operator("dropconnect_mask_bits", _mask_bits),
        Operator("drop_block_mask", _block_mask),
        Operator("drop_block", _drop_block, ("input",)),
        Operator("drop_block_", _drop_block, ("input",)),
        Operator("mask", lambda: [(_state(), 3, 140, 0.3, 0, 16)]),
        Operator("packed_mask", lambda: [(_state(), 3, 140, 0.3, 0, 16)]),
        Operator("uniform_noise", lambda: [(_state(), [3, 50], torch.float32)]),
        Operator("normal_noise", lambda: [(_state(), [], torch.float64)]),
    )  # fmt: skip


# ---- arguments -----------------------------------------------------------------------------------


def _state() -> Tensor:
    return make_rng_state(1, 2)


def _normals(*shapes: tuple[int, ...]) -> list[Tensor]:
    device = torch.get_default_device()
    draw = torch.Generator(device).manual_seed(0)
    return [torch.randn(shape, generator=draw, device=device) for shape in shapes]


def _dropout() -> list[Arguments]:
    input, residual, transposed = _normals((6, 14), (6, 14), (14, 6))
    return [
        (input, None, _state(), 0.3, 1.5, [1], 0.25, -1.0),
        (transposed.t(), residual, _state(), 0.3, 1.5, [], 0.25, -1.0),
    ]


def _gaussian_dropout() -> list[Arguments]:
    input, transposed = _normals((6, 14), (14, 6))
    return [(input, _state(), 0.5), (transposed.t(), _state(), 0.5)]


def _gaussian_noise() -> list[Arguments]:
    """The operands of the noise, and of its gradient, which has no use for the mean."""
    mean, deviation, transposed = _normals((6, 14), (6, 14), (14, 6))
    variance = deviation.square() + 0.1
    return [(mean, variance, _state(), 0.5), (transposed.t(), variance, _state(), 0.5)]


def _concrete_dropout() -> list[Arguments]:
    input, logit_p, transposed = _normals((6, 14), (1,), (14, 6))
    return [(input, logit_p, _state(), 0.5), (transposed.t(), logit_p, _state(), 0.5)]


def _concrete_dropout_backward() -> list[Arguments]:
    grad, input, logit_p = _normals((6, 14), (6, 14), (1,))
    return [(grad, input, logit_p, _state(), 0.5)]


def _epilogue() -> list[Arguments]:
    input, bias, residual, transposed = _normals((6, 14), (14,), (6, 14), (14, 6))
    return [
        (input, bias, residual, _state(), 0.3, "gelu", 1.5),
        (transposed.t(), None, None, _state(), 0.3, "none", 1.5),
    ]


def _epilogue_gradients() -> list[Arguments]:
    grad, input, bias, transposed = _normals((6, 14), (6, 14), (14,), (14, 6))
    return [
        (grad, input, bias, _state(), 0.3, "gelu", 1.5),
        (transposed.t(), None, None, _state(), 0.3, "none", 1.5),
    ]


_LAYER = (0.3, 2, True)  # p, rows_per_mask, rescale


def _matrices() -> list[Tensor]:
    """input, weight, bias and grad_output; the columns fill one group of mask bits and a part."""
    return _normals((6, 140), (9, 140), (9,), (6, 9))


def _bits() -> Tensor:
    """The masks of `_matrices`."""
    bits: Tensor = extension.operators().dropconnect_mask_bits(
        _matrices()[1], _state(), 3, _LAYER[0]
    )
    return bits


def _linear() -> list[Arguments]:
    input, weight, bias, _ = _matrices()
    return [
        (input, weight, bias, _state(), None, *_LAYER),
        (input, weight, None, _state(), _bits(), *_LAYER),
    ]


def _linear_d_input() -> list[Arguments]:
    _, weight, _, grad = _matrices()
    return [(grad, weight, _state(), _bits(), *_LAYER)]


def _linear_d_weight() -> list[Arguments]:
    input, _, _, grad = _matrices()
    return [(grad, input, _state(), None, *_LAYER)]


def _linear_d_both() -> list[Arguments]:
    input, weight, _, grad = _matrices()
    return [(grad, input, weight, _state(), None, *_LAYER)]


def _linear_d_bias() -> list[Arguments]:
    return [(_matrices()[3], _state(), *_LAYER)]


def _mask_bits() -> list[Arguments]:
    return [(_matrices()[1], _state(), 3, 0.3)]


_BLOCKS = ([3, 2], 0.1, False, 2, 1e-6)  # block, gamma, share_channels, scales, eps


def _block_mask() -> list[Arguments]:
    (maps,) = _normals((2, 3, 9, 8))
    return [(maps, _state(), *_BLOCKS), (maps, _state(), [3, 2], 0.1, True, 0, 1e-6)]


def _drop_block() -> list[Arguments]:
    (maps,) = _normals((2, 3, 9, 8))
    bits, scale = extension.operators().drop_block_mask(maps, _state(), *_BLOCKS)
    return [(maps, bits, scale, False), (maps.mT.contiguous().mT, bits, scale, False)]
