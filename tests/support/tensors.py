"""Tensors to test with, and how results are compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
Shape = tuple[int, ...]


def random_tensors(*shapes: Shape, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, ...]:
    """Normal numbers, the same on every device, on torch's default device."""
    draw = torch.Generator("cpu").manual_seed(seed)
    numbers = [
        torch.randn(shape, generator=draw, dtype=torch.float64, device="cpu") for shape in shapes
    ]
    return tuple(tensor.to(torch.get_default_device(), dtype) for tensor in numbers)


def random_tensor(shape: Shape, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """One such tensor."""
    return random_tensors(shape, dtype=dtype, seed=seed)[0]


def computing_type(dtype: torch.dtype) -> torch.dtype:
    """What a dtype is multiplied in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def permuted(input: Tensor, *order: int) -> Tensor:
    """`input` with its dimensions in memory in this order, outermost first."""
    back = [order.index(dim) for dim in range(input.dim())]
    return input.permute(order).contiguous().permute(back)


def with_gaps(input: Tensor) -> Tensor:
    """`input` as every other element, in every dimension, of a tensor of NaNs."""
    spread = input.new_full([2 * size for size in input.shape], math.nan)
    return spread[tuple(slice(1, None, 2) for _ in input.shape)].copy_(input)


def layouts(input: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The same numbers in other places."""
    yield "contiguous", input
    yield "gaps", with_gaps(input)
    if input.dim() == 2:
        yield "transposed", permuted(input, 1, 0)
    if input.dim() == 4:
        yield "channels_last", input.contiguous(memory_format=torch.channels_last)
        yield "heads", permuted(input, 0, 2, 1, 3)
        yield "reversed", permuted(input, 3, 2, 1, 0)
        yield "channels_last with gaps", with_gaps(permuted(input, 0, 2, 3, 1))
    if input.dim() == 5:
        yield "channels_last_3d", input.contiguous(memory_format=torch.channels_last_3d)
        yield "permuted", permuted(input, 3, 0, 4, 2, 1)


def assert_same_bits(actual: Tensor, expected: Tensor, what: object = "") -> None:
    """Equal in every bit, the sign of 0 included; NaNs count as equal."""
    assert (actual.dtype, actual.shape, actual.device) == (
        expected.dtype,
        expected.shape,
        expected.device,
    ), what
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[actual.element_size()]
    nans = actual.isnan()
    assert torch.equal(nans, expected.isnan()), what
    a, b = (tensor.contiguous().view(integers) for tensor in (actual, expected))
    assert torch.equal(a[~nans], b[~nans]), what


def relative_error(actual: Tensor, truth: Tensor) -> float:
    """The norm of the difference in units of the norm of `truth`."""
    difference = (actual.double() - truth.double()).norm()
    return float(difference / truth.double().norm().clamp_min(1e-300)) if truth.numel() else 0.0


def with_gradients(
    op: Callable[..., Tensor], operands: tuple[Tensor, ...], **kwargs: object
) -> list[Tensor]:
    """The output, and a gradient for each operand but the last, which is the output's."""
    *tensors, grad = operands
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    output = op(*leaves, **kwargs)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]
