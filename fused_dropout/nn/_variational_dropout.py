"""The linear layer of sparse variational dropout."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_dropout._core import checks
from fused_dropout.functional._gaussian_noise import gaussian_noise

EPS = 1e-8  # in the logarithm and the square root, as in the authors' code
LOG_ALPHA_LIMIT = 8.0  # likewise

# The approximation of the divergence (Molchanov et al. 2017, equation 14).
K1, K2, K3 = 0.63576, 1.87320, 1.48695


class VariationalDropoutLinear(torch.nn.Linear):
    r"""``torch.nn.Linear`` with normal weights, whose noise is learned and prunes them.

    Weight (o, i) has the mean ``weight[o, i]`` and the variance ``exp(log_sigma2[o, i])``, limited
    as the authors' code does: log alpha = log_sigma2 - log(weight^2) is clipped to [-8, 8] and the
    variance is alpha weight^2. In training the output's own noise is drawn, not the weights' (local
    reparameterisation):

    .. math::
        out \sim N(W x + b, \; (\alpha W^2) \, x^2)

    In evaluation the weights with log alpha below ``threshold``, which have little noise for their
    size, are used without it, and the others are 0. Training minimises the loss plus :meth:`kl`
    times its weight, 1 / (number of examples) for a mean loss.

    Sources: Kingma, Salimans and Welling, "Variational Dropout and the Local Reparameterization
    Trick", NeurIPS 2015, section 2.2; Molchanov, Ashukha and Vetrov, "Variational Dropout
    Sparsifies Deep Neural Networks", ICML 2017, section 4 (additive noise, and equation 14);
    of the limit, svdo-lasagne/nets/layers.py in the authors' code,
    https://github.com/bayesgroup/variational-dropout-sparsifies-dnn.

    Args:
        in_features: size of the input's last dimension.
        out_features: size of the output's last dimension.
        bias: whether there is a bias.
        log_sigma2_init: where log_sigma2 starts; -10 in the authors' code.
        threshold: log alpha from which on a weight is pruned; 3 is a drop rate of 0.95.
        device, dtype: of the parameters; default: torch's.

    Shape:
        input ``[..., in_features]``, output ``[..., out_features]``. Parameters: those of Linear,
        and log_sigma2 of the weight's shape.

    Raises:
        ValueError: log_sigma2_init or threshold is not finite.
        TypeError: an argument of the wrong type.
        RuntimeError: when called, an input that :func:`torch.nn.functional.linear` or
            :func:`fused_dropout.functional.gaussian_noise` refuses.
    """

    drops_in_training = True  # for fused_dropout.mc_dropout

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        log_sigma2_init: float = -10.0,
        threshold: float = 3.0,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        checks.check_bool(bias, "bias")
        log_sigma2_init = checks.check_number(log_sigma2_init, "log_sigma2_init")
        threshold = checks.check_number(threshold, "threshold")
        super().__init__(in_features, out_features, bias, device=device, dtype=dtype)
        self.log_sigma2_init = log_sigma2_init
        self.threshold = threshold
        self.log_sigma2 = torch.nn.Parameter(torch.full_like(self.weight, log_sigma2_init))

    def reset_parameters(self) -> None:
        """Draws weight and bias as Linear does, and sets log_sigma2 to ``log_sigma2_init``."""
        super().reset_parameters()
        if hasattr(self, "log_sigma2"):  # not yet when Linear's constructor calls this
            torch.nn.init.constant_(self.log_sigma2, self.log_sigma2_init)

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return F.linear(input, torch.where(self.kept(), self.weight, 0), self.bias)
        mean = F.linear(input, self.weight, self.bias)
        variance = F.linear(input.square(), self.log_alpha().exp() * self.weight.square())
        return gaussian_noise(mean, variance, eps=EPS)

    def log_alpha(self) -> Tensor:
        """log_sigma2 - log(weight^2), within [-8, 8]; alpha = p / (1 - p) of Gaussian dropout."""
        log_alpha = self.log_sigma2 - (self.weight.square() + EPS).log()
        return log_alpha.clamp(-LOG_ALPHA_LIMIT, LOG_ALPHA_LIMIT)

    def kl(self) -> Tensor:
        """The divergence from the log-uniform prior, approximately: a scalar tensor, at least 0.

        The sum over the weights of k1 - k1 sigmoid(k2 + k3 log alpha) + log(1 + 1 / alpha) / 2.
        """
        log_alpha = self.log_alpha()
        gain = K1 - K1 * torch.sigmoid(K2 + K3 * log_alpha) + 0.5 * F.softplus(-log_alpha)
        return gain.sum()

    @torch.no_grad()
    def kept(self) -> Tensor:
        """Which weights evaluation uses, a bool tensor ``[out_features, in_features]``."""
        return self.log_alpha() < self.threshold

    def sparsity(self) -> float:
        """The share of the weights that evaluation sets to 0, in [0, 1]."""
        kept = self.kept()
        return 1 - int(kept.sum()) / max(kept.numel(), 1)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, threshold={self.threshold}"
