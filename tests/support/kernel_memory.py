"""Memory that kernels read and write: in the emulator, on a GPU, in the PTX interpreter."""

from __future__ import annotations

import math

import numpy as np
import torch
from cuda_on_cpu.runner import SEES_THE_END, Worker
from torch import Tensor

POISON = 0xA5
NUMPY_DTYPES: dict[torch.dtype, type[np.generic]] = {
    torch.float32: np.float32,
    torch.bfloat16: np.int16,
    torch.float16: np.int16,
    torch.float64: np.float64,
}


def name_of(dtype: torch.dtype) -> str:
    """As the names of the kernels' entries end."""
    return str(dtype).removeprefix("torch.")


def memory(tensor: Tensor) -> np.ndarray:
    """The tensor's elements; those of 16 bits as their bits."""
    dense = tensor.detach().contiguous()
    return (dense.view(torch.int16) if dense.element_size() == 2 else dense).numpy()


def poisoned_array(device: Worker, size: int, dtype: type[np.generic]) -> np.ndarray:
    """Memory for a result, with some to spare behind it; none where that is watched."""
    spare = 0 if device.mode in SEES_THE_END else 64
    return np.full((size + spare) * np.dtype(dtype).itemsize, POISON, np.uint8).view(dtype)


def poisoned(device: Worker, *shape: int, dtype: torch.dtype) -> tuple[np.ndarray, Tensor]:
    """The same, and the tensor that looks at it without the spare part behind."""
    count = math.prod(shape)
    numbers = poisoned_array(device, count, NUMPY_DTYPES[dtype])
    return numbers, torch.from_numpy(numbers)[:count].view(dtype).view(shape)


def check_end(numbers: np.ndarray, size: int, what: object = "") -> None:
    """Nothing was written behind the first `size` elements."""
    assert (numbers[size:].view(np.uint8) == POISON).all(), f"{what}: written past the end"


def bytes_of(words: np.ndarray, cols: int) -> np.ndarray:
    """Packed words as one byte per element."""
    return np.unpackbits(words.view(np.uint8), axis=-1, bitorder="little")[..., :cols]
