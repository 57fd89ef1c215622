"""DropBlock's functions."""

from __future__ import annotations

from fused_dropout.functional import drop_block1d, drop_block2d, drop_block3d

FUNCTIONS = {3: drop_block1d, 4: drop_block2d, 5: drop_block3d}  # by the input's dimensions
