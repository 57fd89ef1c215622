"""What torch is told of the operators: results, derivatives, batches, multiply-adds.

One file an op; `_differentiable.py`, `_in_place.py` and `_constant.py` say what follows from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fused_dropout._core import extension
from fused_dropout._ops import (
    bias_act_dropout_add,
    concrete_dropout,
    drop_block,
    dropconnect,
    dropout,
    gaussian_dropout,
    gaussian_noise,
    masks_and_noise,
)
from fused_dropout._ops._constant import register_constant
from fused_dropout._ops._differentiable import NAMESPACE, Differentiable, register
from fused_dropout._ops._flops import register_flops_when_counted
from fused_dropout._ops._in_place import InPlace, register_in_place

DIFFERENTIABLE: tuple[type[Differentiable], ...] = (
    dropout.Dropout,
    gaussian_dropout.GaussianDropout,
    gaussian_noise.GaussianNoise,
    gaussian_noise.GaussianNoiseDVariance,
    concrete_dropout.ConcreteDropout,
    concrete_dropout.ConcreteDropoutBackward,
    bias_act_dropout_add.BiasActDropoutAdd,
    bias_act_dropout_add.DInput,
    bias_act_dropout_add.DBoth,
    drop_block.DropBlock,
    dropconnect.DropConnectLinear,
    dropconnect.DInput,
    dropconnect.DWeight,
    dropconnect.DBoth,
    dropconnect.DBias,
)
IN_PLACE: tuple[type[InPlace], ...] = (
    dropout.DropoutInPlace,
    gaussian_dropout.GaussianDropoutInPlace,
    drop_block.DropBlockInPlace,
)
CONSTANT: dict[str, Callable[..., Any]] = {
    "mask": masks_and_noise.fake_mask,
    "packed_mask": masks_and_noise.fake_packed_mask,
    "uniform_noise": masks_and_noise.fake_noise,
    "normal_noise": masks_and_noise.fake_noise,
    "drop_block_mask": drop_block.fake_mask,
    "dropconnect_mask_bits": dropconnect.fake_mask_bits,
}


def register_operators() -> torch.library.Library:
    """Registers all of it once, after the extension has defined the operators.

    What is registered lives as long as the result.
    """
    library = torch.library.Library(NAMESPACE, "IMPL")
    for op in DIFFERENTIABLE:
        register(op, library)
    for changing in IN_PLACE:
        register_in_place(changing, library)
    for name, fake in CONSTANT.items():
        register_constant(name, fake, library)
    register_flops_when_counted()
    return library


# With the package, not at the first use: torch.compile must find plain operators.
_library = register_operators() if extension.is_loaded() else None
