"""Shapes and dtypes of the operators' results, for torch.compile, export and meta tensors."""

from __future__ import annotations

import torch

from fused_dropout._fake import (
    bias_act_dropout_add,
    drop_block,
    dropconnect,
    dropout,
    masks,
    noise,
)
from fused_dropout._fake.common import Fakes

FAKES: Fakes = {
    **masks.FAKES,
    **dropconnect.FAKES,
    **dropout.FAKES,
    **drop_block.FAKES,
    **bias_act_dropout_add.FAKES,
    **noise.FAKES,
}


def register() -> None:
    """Registers them once, after the extension has defined the operators."""
    for name, fake in FAKES.items():
        torch.library.register_fake(f"fused_dropout::{name}")(fake)
