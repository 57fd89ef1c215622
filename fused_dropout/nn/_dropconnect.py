"""The DropConnect layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor

from fused_dropout._core import checks
from fused_dropout._core.rates import CONVENTIONS, INVERTED, Convention, inverse, keep_rate
from fused_dropout._core.rng import check_single_source, resolve_rng_state
from fused_dropout.functional import _dropconnect as functional
from fused_dropout.functional import _dropconnect_gaussian as gaussian
from fused_dropout.functional._mask_weight import mask_weight

Inference = Literal["mean", "gaussian", "relu_exact"]
MEAN, GAUSSIAN, RELU_EXACT = INFERENCES = get_args(Inference)


class LinearActivation(torch.nn.Linear):
    """A linear layer and the activation that is applied to its output, with a Linear's state_dict.

    What :meth:`DropConnectLinear.sample` returns, and what :func:`fused_dropout.to_linear` makes of
    a DropConnect layer that has an activation.

    Args:
        in_features, out_features, bias, device, dtype: as for :class:`torch.nn.Linear`.
        activation: a callable, a name as for :class:`DropConnectLinear`, or None.
    """

    activation: gaussian.Activation | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: gaussian.Activation | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:
        return _activated(super().forward(input), self.activation)

    def extra_repr(self) -> str:
        return super().extra_repr() + _shown_activation(self.activation)


class DropConnectLinear(torch.nn.Linear):
    """A linear layer whose every weight and bias is dropped with probability ``p`` in training.

    Replaces :class:`torch.nn.Linear`: same parameters, initialisation and state_dict. Every example
    draws masks of its own, anew in every call; in evaluation it is the plain linear layer, or the
    paper's inference. The layer calls :func:`fused_dropout.functional.dropconnect_linear` and
    :func:`fused_dropout.functional.dropconnect_gaussian`.

    Source: Wan et al., "Regularization of Neural Networks using DropConnect", ICML 2013.

    Args:
        in_features: size of the input's last dimension.
        out_features: size of the output's last dimension.
        bias: whether there is a bias.
        p: drop probability in [0, 1].
        mask: the rows of the input that share a mask: ``"row"`` (none), ``"example"`` (those of one
            item of the first dimension), ``"batch"`` (all), or an int of at least 1: that many
            consecutive rows.
        convention: ``"inverted"`` divides by the keep rate in training; ``"paper"`` multiplies by
            it in evaluation instead.
        mask_storage: how backward gets the masks: ``"regenerate"`` draws them again, ``"packed"``
            keeps 1 bit per connection, ``"auto"`` takes the faster of the two.
        mask_bias: whether the bias is masked, and scaled, too.
        inference: what evaluation computes, for an activation a: ``"mean"`` is a of the plain
            layer; ``"gaussian"`` the mean of a over normal pre-activations of the masks' mean and
            variance, by ``samples`` of them (the paper's Algorithm 2); ``"relu_exact"`` what that
            tends to for ReLU.
        activation: what is applied to the output, in training too: a callable, a module, or
            ``"relu"``, ``"gelu"``, ``"silu"``, ``"sigmoid"``, ``"tanh"``; None is none.
            ``"gaussian"`` needs one; with ``"relu_exact"`` it is ``"relu"``, which need not be
            given.
        samples: how many ``"gaussian"`` draws for each unit, at least 1.
        generator: draws the random states of ``"gaussian"``; default: torch's generator of the
            input's device.
        seed: an int that makes ``"gaussian"`` a pure function of input and parameters.
        device: of the parameters; default: torch's default device.
        dtype: of the parameters; default: torch's default dtype.

    Shape:
        input: ``[..., in_features]``; output: ``[..., out_features]``.

    Raises:
        ValueError: p, mask, convention, mask_storage, inference, activation or samples out of
            range, or together; both generator and seed.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that :func:`fused_dropout.functional.dropconnect_linear`
            refuses.

    Example:
        >>> from fused_dropout import nn
        >>> layer = nn.DropConnectLinear(8, 4, p=0.5)
        >>> layer(torch.ones(2, 8)).shape
        torch.Size([2, 4])
        >>> nn.DropConnectLinear(8, 4, inference="relu_exact").eval()(torch.ones(8)).shape
        torch.Size([4])
    """

    drops_in_training = True  # for fused_dropout.mc_dropout

    activation: gaussian.Activation | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        p: float = 0.5,
        *,
        mask: functional.MaskMode | int = "example",
        convention: Convention = "inverted",
        mask_storage: functional.MaskStorage = "auto",
        mask_bias: bool = True,
        inference: Inference = "mean",
        activation: gaussian.Activation | None = None,
        samples: int = gaussian.SAMPLES,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        checks.check_bool(bias, "bias")
        p = checks.check_probability(p)
        checks.check_mask_mode(mask, functional.MASK_MODES, "rows")
        checks.check_choice(convention, "convention", CONVENTIONS)
        checks.check_choice(mask_storage, "mask_storage", functional.MASK_STORAGES)
        checks.check_bool(mask_bias, "mask_bias")
        checks.check_choice(inference, "inference", INFERENCES)
        activation = _checked_activation(activation, inference)
        samples = checks.check_int(samples, "samples", 1)
        check_single_source(generator, seed, None)
        if seed is not None:
            seed = checks.as_int(seed, "seed")
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.p = p
        self.mask = mask
        self.convention = convention
        self.mask_storage = mask_storage
        self.mask_bias = mask_bias
        self.inference = inference
        self.activation = activation
        self.samples = samples
        self.generator = generator
        self.seed = seed

    def forward(self, input: Tensor) -> Tensor:
        if not self.training and self.inference != MEAN:
            is_exact = self.inference == RELU_EXACT
            return gaussian.dropconnect_gaussian(
                input,
                self.weight,
                self.bias,
                self.p,
                cast(gaussian.Activation, self.activation),
                None if is_exact else self.samples,
                generator=None if is_exact else self.generator,
                seed=None if is_exact else self.seed,
                convention=self.convention,
                mask_bias=self.mask_bias,
            )
        output = functional.dropconnect_linear(
            input,
            self.weight,
            self.bias,
            self.p,
            self.training,
            mask=self.mask,
            convention=self.convention,
            mask_storage=self.mask_storage,
            mask_bias=self.mask_bias,
        )
        return _activated(output, self.activation)

    def sample(
        self,
        *,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        rng_state: Tensor | None = None,
    ) -> LinearActivation:
        """One network drawn at random: a linear layer on masked, scaled copies of the parameters.

        It computes what this layer computes in training with ``mask="batch"`` and the same random
        state, whatever its mode, and draws nothing any more. Its parameters share no memory and no
        graph with those of this layer.

        Args:
            generator: draws the random state; default: torch's generator of the weight's device.
            seed: an int that makes the call a pure function of its arguments: it uses the masks of
                seed ``seed`` and offset 0.
            rng_state: int64 tensor ``[2]`` (seed, offset), which does the same for any offset; see
                :func:`fused_dropout.make_rng_state`.

        Returns:
            A layer of the dtype, device and activation of this one.

        Raises:
            ValueError: more than one of generator, seed and rng_state.
            RuntimeError: no kernels for the device.
            TypeError: an argument of the wrong type.

        Example:
            >>> from fused_dropout import nn
            >>> layer, x = nn.DropConnectLinear(8, 4, mask="batch"), torch.ones(2, 8)
            >>> state = torch.get_rng_state()
            >>> network = layer.sample()
            >>> torch.set_rng_state(state)
            >>> torch.allclose(network(x), layer(x), atol=1e-6)
            True
        """
        check_single_source(generator, seed, rng_state)
        q = keep_rate(self.p)
        state = None
        if q < 1.0:
            state = resolve_rng_state(self.weight, generator, seed, rng_state)
        network = LinearActivation(
            self.in_features,
            self.out_features,
            self.bias is not None,
            device="meta",
            activation=self.activation,
        )
        with torch.no_grad():
            weight = mask_weight(self.weight, self.p, rng_state=state, convention=self.convention)
            network.weight = torch.nn.Parameter(weight.clone(), self.weight.requires_grad)
            if self.bias is not None:
                bias = self.bias.clone()
                if state is not None and self.mask_bias:
                    scale = inverse(q) if self.convention == INVERTED else 1.0
                    bias = functional.masked_bias(bias, state, self.p, scale)
                network.bias = torch.nn.Parameter(bias, self.bias.requires_grad)
        return network.train(self.training)

    def extra_repr(self) -> str:
        shown = f"{super().extra_repr()}, p={self.p}, mask={self.mask!r}"
        if self.convention != "inverted":
            shown += f", convention={self.convention!r}"
        if self.mask_storage != "auto":
            shown += f", mask_storage={self.mask_storage!r}"
        if not self.mask_bias:
            shown += ", mask_bias=False"
        if self.inference != MEAN:
            shown += f", inference={self.inference!r}"
        shown += _shown_activation(self.activation)
        if self.inference == GAUSSIAN:
            shown += f", samples={self.samples}"
            shown += "" if self.seed is None else f", seed={self.seed}"
        return shown

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for name, default in _SINCE_FIRST_PICKLES.items():
            if name not in vars(self) and name not in self._modules:
                setattr(self, name, default)


# What layers that were pickled without these attributes have.
_SINCE_FIRST_PICKLES = {
    "mask_bias": True,
    "inference": MEAN,
    "activation": None,
    "samples": gaussian.SAMPLES,
    "generator": None,
    "seed": None,
}


def _activated(output: Tensor, activation: gaussian.Activation | None) -> Tensor:
    if activation is None:
        return output
    function: Callable[[Tensor], Tensor] = gaussian.check_activation(activation)
    return function(output)


def _shown_activation(activation: gaussian.Activation | None) -> str:
    """For a repr; a module is shown as a child."""
    if activation is None or isinstance(activation, torch.nn.Module):
        return ""
    name = activation if isinstance(activation, str) else None
    return f", activation={name or getattr(activation, '__name__', activation)!r}"


def _checked_activation(activation: Any, inference: Inference) -> gaussian.Activation | None:
    """``activation`` if it is one that ``inference`` can average."""
    if inference == RELU_EXACT:
        known = (None, torch.relu, torch.nn.functional.relu)
        is_relu = isinstance(activation, torch.nn.ReLU) or any(activation is one for one in known)
        if not is_relu and not (isinstance(activation, str) and activation == gaussian.RELU):
            raise ValueError(
                f"inference={RELU_EXACT!r} has activation={gaussian.RELU!r}, got {activation!r}; "
                f"others need inference={GAUSSIAN!r}"
            )
        return gaussian.RELU
    if activation is not None:
        gaussian.check_activation(activation)
    elif inference == GAUSSIAN:
        raise ValueError(
            f"inference={GAUSSIAN!r} averages activations and needs activation=, the one that "
            f"follows the layer, got {activation!r}"
        )
    return cast("gaussian.Activation | None", activation)
