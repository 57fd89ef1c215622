"""The concrete dropout layer, which learns its drop probability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_dropout._core import checks
from fused_dropout.functional._concrete_dropout import concrete_dropout


class ConcreteRegularisation(NamedTuple):
    """The two terms of a layer's regularisation, to be added to the loss.

    Attributes:
        weight: scalar tensor, the part that the squared weights make.
        dropout: scalar tensor, the part that the entropy of the drop probability makes.
    """

    weight: Tensor
    dropout: Tensor


class ConcreteDropout(torch.nn.Module):
    r"""Drops elements of the input with a probability that is learned, then applies ``layer``.

    In training ``layer(concrete_dropout(input, logit_p))``, in evaluation ``layer(input)``; without
    a layer, the (dropped) input itself. The loss must include :meth:`regulariser`, which
    holds p up.

    Source: Gal, Hron and Kendall, "Concrete Dropout", NeurIPS 2017, section 3 and the code in its
    appendix.

    Args:
        layer: the layer whose input is dropped, or None.
        weight_regulariser: factor of the squared weights: l^2 / (tau N) for the prior length scale
            l, the model's precision tau (1 for cross entropy) and N training examples.
        dropout_regulariser: factor of the entropy: 2 / (tau N), for cross entropy 1 / N.
        init_min, init_max: bounds of the first p, in (0, 1): its logit is uniform between theirs.
        temperature: of the relaxed mask, above 0.
        broadcast_dims: dimensions along which the mask is shared; default: none. The authors'
            layer for convolutions, which drops whole channels, has (2, 3).
        features: K in the paper, elements of one example's mask; default: ``in_features`` of the
            layer if it has any, else those of the last input, whose first dimension counts the
            examples, as in the authors' code.
        device, dtype: of the parameter ``logit_p``, which has one element; default: those of the
            layer.

    Shape:
        input and output: as the layer's; any without one.

    Raises:
        ValueError: an argument out of range.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that :func:`fused_dropout.functional.concrete_dropout`
            refuses.
    """

    drops_in_training = True  # for fused_dropout.mc_dropout

    def __init__(
        self,
        layer: torch.nn.Module | None = None,
        *,
        weight_regulariser: float = 1e-6,
        dropout_regulariser: float = 1e-5,
        init_min: float = 0.1,
        init_max: float = 0.1,
        temperature: float = 0.1,
        broadcast_dims: Sequence[int] = (),
        features: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if layer is not None and not isinstance(layer, torch.nn.Module):
            raise TypeError(f"layer must be a Module or None, got {type(layer).__name__}")
        check = checks.check_number
        self.weight_regulariser = check(weight_regulariser, "weight_regulariser", at_least=0.0)
        self.dropout_regulariser = check(dropout_regulariser, "dropout_regulariser", at_least=0.0)
        self.temperature = check(temperature, "temperature", above=0.0)
        self.broadcast_dims = checks.as_ints(broadcast_dims, "broadcast_dims")
        self.init_min, self.init_max = _check_bounds(init_min, init_max)
        self.features = getattr(layer, "in_features", None) if features is None else features
        if self.features is not None:
            self.features = checks.check_int(self.features, "features", 1, 2**63 - 1)
        self._features_seen: int | None = None
        self.layer = layer
        like = next(layer.parameters(), None) if layer is not None else None
        if like is not None:
            device, dtype = device or like.device, dtype or like.dtype
        # One element, not a scalar: torch's fully_shard takes no scalar parameters.
        self.logit_p = torch.nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws logit_p again; the layer's parameters stay."""
        low, high = _logit(self.init_min), _logit(self.init_max)
        torch.nn.init.uniform_(self.logit_p, low, high)

    @property
    def p(self) -> Tensor:
        """The drop probability, a scalar that can be differentiated."""
        return torch.sigmoid(self._logit())

    def _logit(self) -> Tensor:
        return self.logit_p.sum()  # the element as a scalar; DTensor cannot reshape it

    def forward(self, input: Tensor) -> Tensor:
        dropped = concrete_dropout(
            input,
            self.logit_p,
            self.temperature,
            self.training,
            broadcast_dims=self.broadcast_dims,
        )
        if self.features is None and isinstance(input, Tensor):  # torch.fx traces without one
            shared = [dim % input.dim() for dim in self.broadcast_dims]
            sizes = [size for dim, size in enumerate(input.shape) if dim not in shared]
            self._features_seen = math.prod(sizes if 0 in shared else sizes[1:])
        return dropped if self.layer is None else self.layer(dropped)

    def regulariser(self, layer: torch.nn.Module | None = None) -> ConcreteRegularisation:
        """What must be added to the loss: ``sum(module.regulariser())``.

        ``weight`` is weight_regulariser / (1 - p) times the sum of the squared weights, that is of
        the layer's parameters of two dimensions or more; 0 without a layer. ``dropout`` is
        dropout_regulariser K (p log p + (1 - p) log(1 - p)), K = ``features`` or, where they are
        not given, the elements of the mask of one example of the last input.

        Args:
            layer: the layer that the dropped input goes to, where this module does not hold it.

        Returns:
            (weight, dropout), two scalar tensors.

        Raises:
            RuntimeError: ``features`` is not given, the layer has no ``in_features``, and the
                module was not called yet.
        """
        features = self._features_seen if self.features is None else self.features
        if features is None:
            raise RuntimeError(
                "ConcreteDropout's regulariser needs features, the elements of one example's "
                "input: give them, or call the module first; the layer has no in_features"
            )
        layer = self.layer if layer is None else layer
        parameters = () if layer is None else layer.parameters()
        weights = [weight.square().sum() for weight in parameters if weight.dim() > 1]
        logit = self._logit()
        p, log_p, log_keep = self.p, F.logsigmoid(logit), F.logsigmoid(-logit)
        squares = torch.stack(weights).sum() if weights else torch.zeros_like(p)
        return ConcreteRegularisation(
            self.weight_regulariser * squares * torch.exp(-log_keep),
            self.dropout_regulariser * features * (p * log_p + (1 - p) * log_keep),
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Loads states too in which logit_p is a scalar, as it was once."""
        saved = state_dict.get(f"{prefix}logit_p")
        if isinstance(saved, Tensor) and saved.dim() == 0:
            state_dict[f"{prefix}logit_p"] = saved.reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        dims = f", broadcast_dims={self.broadcast_dims}" if self.broadcast_dims else ""
        return (
            f"weight_regulariser={self.weight_regulariser}, "
            f"dropout_regulariser={self.dropout_regulariser}, temperature={self.temperature}{dims}"
        )


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


def _check_bounds(init_min: Any, init_max: Any) -> tuple[float, float]:
    low = checks.check_probability(init_min, "init_min")
    high = checks.check_probability(init_max, "init_max")
    if not 0 < low <= high < 1:
        raise ValueError(
            f"init_min and init_max must be in (0, 1) and in order, got {init_min} and {init_max}"
        )
    return low, high
