"""Gaussian dropout: input * (1 + sigma * z). Its gradient is the same again."""

from __future__ import annotations

from fused_dropout._ops._differentiable import OwnDerivative
from fused_dropout._ops._in_place import InPlace


class GaussianDropout(OwnDerivative):
    """Tensors: input, rng_state. Settings: sigma. Nothing but the random state is saved."""

    name = "gaussian_dropout"


class GaussianDropoutInPlace(InPlace):
    """The same, written into the input."""

    pure = GaussianDropout


OPERATORS = (GaussianDropout, GaussianDropoutInPlace)
