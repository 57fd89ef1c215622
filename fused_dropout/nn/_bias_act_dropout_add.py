"""The transformer epilogue as a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fused_dropout._core import checks
from fused_dropout._core.rates import CONVENTIONS, Convention
from fused_dropout.functional._bias_act_dropout_add import (
    ACTIVATIONS,
    Activation,
    bias_act_dropout_add,
)


class BiasActDropoutAdd(torch.nn.Module):
    r"""``residual + dropout(activation(input + bias), p)`` in one pass, with a bias of its own.

    It takes over the bias of the linear layer before it, so that adding it costs no pass::

        up = torch.nn.Linear(768, 3072, bias=False)
        epilogue = BiasActDropoutAdd(3072, p=0.1, activation="gelu")
        hidden = epilogue(up(x))

    In evaluation nothing is dropped. See
    :func:`fused_dropout.functional.bias_act_dropout_add`, which takes any tensor as the bias, for
    instance ``linear.bias``.

    Args:
        features: size of the input's last dimension.
        p: drop probability in [0, 1].
        activation: ``"none"``, ``"relu"``, ``"gelu"`` (x Phi(x)), ``"gelu_tanh"`` (torch's
            ``approximate="tanh"``) or ``"silu"``.
        bias: whether there is a bias; it starts at 0, as in torch's normalisation layers.
        convention: ``"inverted"`` (divide by the keep rate in training) or ``"paper"`` (multiply by
            it in evaluation).
        device, dtype: of the bias; default: torch's.

    Shape:
        input and, if given, residual: ``[..., features]``; output: the same.

    Raises:
        ValueError: features, p, activation or convention out of range.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that
            :func:`fused_dropout.functional.bias_act_dropout_add` refuses.
    """

    bias: Tensor | None

    drops_in_training = True  # for fused_dropout.mc_dropout

    def __init__(
        self,
        features: int,
        p: float = 0.1,
        activation: Activation = "none",
        bias: bool = True,
        *,
        convention: Convention = "inverted",
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        features = checks.check_int(features, "features", 0, 2**62)
        p = checks.check_probability(p)
        checks.check_bool(bias, "bias")
        checks.check_choice(activation, "activation", ACTIVATIONS)
        checks.check_choice(convention, "convention", CONVENTIONS)
        super().__init__()
        self.features = features
        self.p = p
        self.activation = activation
        self.convention = convention
        if bias:
            self.bias = torch.nn.Parameter(torch.empty(features, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Sets the bias to 0."""
        if self.bias is not None:
            torch.nn.init.zeros_(self.bias)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        if isinstance(input, Tensor):  # the function judges, or dispatches, what is none
            self._check_features(input)
        return bias_act_dropout_add(
            input,
            self.bias,
            residual,
            self.p,
            self.activation,
            self.training,
            convention=self.convention,
        )

    def _check_features(self, input: Tensor) -> None:
        if input.dim() == 0 or input.shape[-1] != self.features:
            raise RuntimeError(
                f"input must have shape [..., {self.features}], got {list(input.shape)}"
            )

    def extra_repr(self) -> str:
        shown = f"{self.features}, p={self.p}, activation={self.activation!r}"
        shown += f", bias={self.bias is not None}"
        if self.convention != "inverted":
            shown += f", convention={self.convention!r}"
        return shown
