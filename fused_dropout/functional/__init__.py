"""Dropout as functions of tensors: differentiable, and computed by fused kernels.

The functions have the names, arguments and defaults of their counterparts in
``torch.nn.functional``, torchvision and timm. They draw from torch's generators, so that
``torch.manual_seed`` repeats a result; ``seed=`` or ``rng_state=`` make a call a pure function of
its arguments instead.
"""

from fused_dropout.functional._alpha_dropout import alpha_dropout, feature_alpha_dropout
from fused_dropout.functional._bias_act_dropout_add import bias_act_dropout_add
from fused_dropout.functional._channel_dropout import dropout1d, dropout2d, dropout3d
from fused_dropout.functional._concrete_dropout import concrete_dropout
from fused_dropout.functional._drop_block import drop_block1d, drop_block2d, drop_block3d
from fused_dropout.functional._drop_path import (
    drop_path,
    drop_path_add,
    linear_drop_rates,
    stochastic_depth,
)
from fused_dropout.functional._drop_path_skip import drop_path_skip
from fused_dropout.functional._dropconnect import dropconnect_linear
from fused_dropout.functional._dropconnect_conv import (
    dropconnect_conv1d,
    dropconnect_conv2d,
    dropconnect_conv3d,
)
from fused_dropout.functional._dropconnect_gaussian import dropconnect_gaussian, expected_relu
from fused_dropout.functional._dropconnect_moments import dropconnect_moments
from fused_dropout.functional._dropout import dropout
from fused_dropout.functional._dropout_linear import dropout_linear
from fused_dropout.functional._dropout_matmul import dropout_matmul
from fused_dropout.functional._embedding_dropout import embedding_dropout
from fused_dropout.functional._gaussian_dropout import gaussian_dropout
from fused_dropout.functional._gaussian_noise import gaussian_noise
from fused_dropout.functional._locked_dropout import locked_dropout
from fused_dropout.functional._mask_weight import mask_weight
from fused_dropout.functional._token_dropout import patch_dropout, token_dropout
from fused_dropout.functional._zoneout import zoneout

__all__ = [
    "alpha_dropout",
    "bias_act_dropout_add",
    "concrete_dropout",
    "drop_block1d",
    "drop_block2d",
    "drop_block3d",
    "drop_path",
    "drop_path_add",
    "drop_path_skip",
    "dropconnect_conv1d",
    "dropconnect_conv2d",
    "dropconnect_conv3d",
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
    "gaussian_dropout",
    "gaussian_noise",
    "linear_drop_rates",
    "locked_dropout",
    "mask_weight",
    "patch_dropout",
    "stochastic_depth",
    "token_dropout",
    "zoneout",
]
