"""A DropConnect layer whose products the device computes."""

from __future__ import annotations

import numpy as np
import torch
from support.kernel_memory import NUMPY_DTYPES, memory
from torch import Tensor

import fused_dropout
from fused_dropout import reference
from fused_dropout._core import extension

from .device import Device, Layer
from .memory import Numbers

SEED, OFFSET = 2**63 + 12345, 2**40 + 7

Case = tuple[tuple[int, int, int, int], float]  # the sizes of a Layer; p
PRODUCTS = ("forward", "d_input", "d_weight", "d_bias")


def state(device: Device, seed: int = SEED, offset: int = OFFSET) -> int:
    """An rng_state in the device's memory."""
    return device.put(np.array([seed, offset], np.uint64))


def stored_masks(sizes: tuple[int, int, int, int], p: float) -> Numbers:
    """The masks as the CPU stores them: [groups, masks, outs rounded up, 4 words]."""
    rows, in_features, out_features, rows_per_mask = sizes
    masks = -(-rows // rows_per_mask)
    rng_state = fused_dropout.make_rng_state(SEED, OFFSET)
    weight = torch.empty(out_features, in_features)
    bits = extension.operators().dropconnect_mask_bits(weight, rng_state, masks, p)
    return bits.numpy().view(np.uint32).reshape(-(-in_features // 128), masks, -1, 4)


class DropConnect:
    """One layer on the device: its operands there, and its products."""

    def __init__(
        self,
        device: Device,
        sizes: tuple[int, int, int, int],
        p: float,
        operands: tuple[Tensor, ...],
        stored: bool = False,
    ) -> None:
        self.device = device
        self.layer = Layer(*sizes)
        self.dtype = operands[0].dtype
        self.p = p
        q = reference.keep_rate(p)
        self.scale = 1 / q if q > 0 else 0.0
        self.operands = operands
        self.on_device = [device.put(memory(tensor)) for tensor in operands]
        self.stored = device.put(stored_masks(sizes, p)) if stored else 0

    def _product(self, name: str, like: Tensor, *operands: int) -> Tensor:
        device = self.device
        suffix = str(self.dtype).removeprefix("torch.")
        dtype = NUMPY_DTYPES[self.dtype]
        result = device.poisoned(dtype, *like.shape)
        sums = np.float64 if self.dtype == torch.float64 else np.float32
        if name == "d_bias":
            masks: tuple[int, ...] = ()
            size = like.shape[0]
        else:
            masks = (self.stored,)
            size = device.call(f"{name}_workspace_{suffix}", self.layer, *operands[:2])
        workspace = device.poisoned(sums, size)
        arguments = (state(device), self.layer, self.p, self.scale, *masks, *operands)
        assert device.call(f"{name}_{suffix}", *arguments, workspace, result) == 0
        array = device.get(result, dtype, *like.shape)
        return torch.from_numpy(array).view(self.dtype)

    def product(self, name: str) -> Tensor:
        """One of PRODUCTS."""
        x, w, b, g = self.on_device
        input, weight, bias, grad = self.operands
        if name == "forward":
            return self._product(name, grad, x, w, b)
        if name == "d_input":
            return self._product(name, input, w, g)
        if name == "d_weight":
            return self._product(name, weight, x, g)
        return self._product(name, bias, g)
