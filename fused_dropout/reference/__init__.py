"""The specification in readable NumPy and torch: what every kernel of this package must compute.

Nothing here is fast, and nothing here calls the compiled extension.
"""

from fused_dropout.reference.drop_block import block_mask, drop_block
from fused_dropout.reference.dropconnect import dropconnect_linear, rows_per_mask
from fused_dropout.reference.masks import (
    fraction_digit,
    keep_rate,
    mask,
    mask_matrix,
    philox4x32_10,
    threshold,
)

__all__ = [
    "block_mask",
    "drop_block",
    "dropconnect_linear",
    "fraction_digit",
    "keep_rate",
    "mask",
    "mask_matrix",
    "philox4x32_10",
    "rows_per_mask",
    "threshold",
]
