"""DropConnect layers of other packages."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from fused_dropout._core import checks
from fused_dropout._models.replace.become import share_members
from fused_dropout.functional import mask_weight


class SharedMaskLinear(nn.Module):
    """A linear layer with one mask of its weight for all rows, in the paper's convention.

    In training ``F.linear(x, mask * weight, bias)``, in evaluation ``F.linear(x, (1 - p) * weight,
    bias)``: probly's layer, whose bias is neither masked nor scaled.

    Args:
        in_features: size of the input's last dimension.
        out_features: size of the output's last dimension.
        p: drop probability in [0, 1].

    The parameters are the converter's to set.
    """

    drops_in_training = True  # for fused_dropout.mc_dropout
    weight: Tensor
    bias: Tensor | None

    def __init__(self, in_features: int, out_features: int, p: float) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.p = checks.check_probability(p)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            weight = mask_weight(self.weight, self.p, convention="paper")
        else:
            weight = self.weight * (1 - self.p)
        return F.linear(x, weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, p={self.p}"


def _probly(layer: Any) -> nn.Module | str:
    if "weight" not in layer._parameters:
        return "its weight is computed from other parameters"
    new = SharedMaskLinear(layer.in_features, layer.out_features, layer.p)
    share_members(new, layer)
    if "bias" in vars(layer):  # None, which is no parameter
        vars(new)["bias"] = vars(layer)["bias"]
    return new


CONVERTERS = {("probly", "DropConnectLinear"): _probly}
