"""The specification in readable NumPy and torch: what every kernel of this package must compute.

Nothing here is fast, and nothing here calls the compiled extension.
"""

from fused_dropout.reference._bias_act_dropout_add import ACTIVATIONS, bias_act_dropout_add
from fused_dropout.reference._drop_block import block_mask, drop_block
from fused_dropout.reference._dropconnect import dropconnect_linear, rows_per_mask
from fused_dropout.reference._dropconnect_conv import dropconnect_conv
from fused_dropout.reference._dropconnect_moments import (
    dropconnect_gaussian,
    dropconnect_moments,
    expected_relu,
)
from fused_dropout.reference._dropout import (
    alpha_dropout,
    dropout,
    dropout1d,
    dropout2d,
    dropout3d,
    feature_alpha_dropout,
    locked_dropout,
)
from fused_dropout.reference._dropout_linear import dropout_linear
from fused_dropout.reference._dropout_matmul import dropout_matmul
from fused_dropout.reference._mask_weight import mask_weight
from fused_dropout.reference._masks import (
    fraction_digit,
    keep_rate,
    mask,
    mask_matrix,
    philox4x32_10,
    threshold,
)
from fused_dropout.reference._noise import (
    concrete_dropout,
    gaussian_dropout,
    gaussian_noise,
    normal_noise,
    uniform_noise,
)
from fused_dropout.reference._token_dropout import patch_dropout, token_dropout
from fused_dropout.reference._weight_drop import embedding_dropout, weight_drop
from fused_dropout.reference._zoneout import zoneout

__all__ = [
    "ACTIVATIONS",
    "alpha_dropout",
    "bias_act_dropout_add",
    "block_mask",
    "concrete_dropout",
    "drop_block",
    "dropconnect_conv",
    "dropconnect_gaussian",
    "dropconnect_linear",
    "dropconnect_moments",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "dropout_linear",
    "dropout_matmul",
    "embedding_dropout",
    "expected_relu",
    "feature_alpha_dropout",
    "fraction_digit",
    "gaussian_dropout",
    "gaussian_noise",
    "keep_rate",
    "locked_dropout",
    "mask",
    "mask_matrix",
    "mask_weight",
    "normal_noise",
    "patch_dropout",
    "philox4x32_10",
    "rows_per_mask",
    "threshold",
    "token_dropout",
    "uniform_noise",
    "weight_drop",
    "zoneout",
]
