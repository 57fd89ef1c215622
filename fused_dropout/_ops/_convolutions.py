"""How DropConnect's convolutions are computed: some masks at a time, by torch's products.

Every mask makes a weight of its own, so a convolution under n masks is n dense ones, and the floor
is the dense convolution's multiply-adds. There are two ways to do them.

- One grouped convolution: n masked weights one after another, [n out, in / groups, *kernel], on
  images side by side, [1, n in, *size]. It reads the input as it is. Where images are large beside
  the weight it takes as long as the dense convolution; where they are small, writing the masked
  weights and arranging them for the product takes most of the time.
- Matrix products over positions: the patches of the images, [positions, in * kernel], are rows of
  `dropconnect_linear`, which makes masked weights a tile at a time, in cache. Patches take `kernel`
  times the memory of the images; masked weights take none.

Patches pay where an output channel has few positions: `Problem.prefers_patches`. What is made for a
product, masked weights or patches, has at most PART_ELEMENTS elements, or belongs to one mask;
masks are drawn again by whoever needs them.

On the CPU 16-bit operands are widened, as much of them as a product takes: torch's convolutions of
these types take 5 to 30 times as long as those of floats, unless the processor multiplies bf16 in
tiles (AMX).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, is_autocast_enabled
from torch.nn import functional as F

from fused_dropout._core import extension

# Measured from 2^18 to 2^24 on a CPU: fewer elements cost calls, more leave the caches.
PART_ELEMENTS, PART_ELEMENTS_OF_GPU = 1 << 22, 1 << 24
# Patches pay up to so many output channels for each position that has a mask's weight. Between half
# as many and twice as many both ways are within 30 % of each other.
FORWARD, D_INPUT, D_WEIGHT = 2, 2, 1
HALVES = (torch.bfloat16, torch.float16)
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}

Shape = tuple[int, ...]


class Settings(NamedTuple):
    """What all of the operators are told, in the order of their schemas."""

    p: float
    examples_per_mask: int
    scale: float
    stride: Sequence[int]
    padding: Sequence[int]  # zeros before and behind
    dilation: Sequence[int]
    groups: int


class Part(NamedTuple):
    """Some masks, and the examples that have them."""

    first_mask: int
    masks: int
    examples: slice
    examples_per_mask: int


@dataclass(frozen=True)
class Problem:
    """A convolution: input [examples, in, *size], weight [out, in / groups, *kernel]."""

    input: Shape
    weight: Shape
    settings: Settings
    out_size: Shape

    @property
    def output(self) -> Shape:
        return (self.input[0], self.weight[0], *self.out_size)

    @property
    def columns(self) -> int:
        """Elements of the weight that one output channel has."""
        return math.prod(self.weight[1:])

    def parts(self, by_patches: bool, like: Tensor) -> list[Part]:
        """The examples, cut so that what is made for a product keeps within PART_ELEMENTS."""
        most = PART_ELEMENTS_OF_GPU if like.is_cuda else PART_ELEMENTS
        examples, each = self.input[0], self.settings.examples_per_mask
        rows = each * math.prod(self.out_size) if by_patches else self.weight[0]
        at_once = max(1, most // max(1, rows * self.columns))
        whole = examples // each
        found = []
        for first in range(0, whole, at_once):
            masks = min(at_once, whole - first)
            found.append(Part(first, masks, slice(first * each, (first + masks) * each), each))
        if whole * each < examples:  # the last mask has fewer examples
            rest = examples - whole * each
            found.append(Part(whole, 1, slice(whole * each, examples), rest))
        return found

    def prefers_patches(self, channels_a_position: int) -> bool:
        """Whether products over positions take less time than a grouped convolution."""
        positions = min(self.settings.examples_per_mask, self.input[0]) * math.prod(self.out_size)
        return self.settings.groups == 1 and positions * channels_a_position <= self.weight[0]


def problem_of(input: Sequence[int], weight: Sequence[int], settings: Settings) -> Problem:
    """The convolution of such shapes.

    Raises:
        RuntimeError: shapes and settings that do not fit.
    """
    dims = len(weight) - 2
    if not 1 <= dims <= 3 or len(input) != dims + 2:
        raise RuntimeError(
            "input must have shape [examples, in_channels, *size] and weight [out_channels, "
            f"in_channels / groups, *kernel_size], got {list(input)} and {list(weight)}"
        )
    stride, padding, dilation, groups = settings[3:]
    for name, values, least in (
        ("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1),
    ):  # fmt: skip
        if len(values) != dims or any(value < least for value in values):
            wanted = f"{name} must be {dims} ints of at least {least}"
            raise RuntimeError(f"{wanted}, got {list(values)}")
    if groups < 1 or weight[0] % groups != 0 or input[1] != weight[1] * groups:
        raise RuntimeError(
            "groups must divide out_channels, and groups times weight.shape[1] be in_channels, got "
            f"groups {groups}, weight {list(weight)}, input {list(input)}"
        )
    if settings.examples_per_mask < 1:
        wanted = "examples_per_mask must be at least 1"
        raise RuntimeError(f"{wanted}, got {settings.examples_per_mask}")
    out_size = tuple(
        (size + 2 * pad - dilate * (kernel - 1) - 1) // step + 1
        for size, kernel, step, pad, dilate in zip(
            input[2:], weight[2:], stride, padding, dilation, strict=True
        )
    )
    if any(size < 1 for size in (*out_size, *weight[2:])):
        raise RuntimeError(
            f"kernel_size must be at least 1 and fit into the padded input, got weight "
            f"{list(weight)}, input {list(input)}, padding {list(padding)}, dilation "
            f"{list(dilation)}"
        )
    return Problem(tuple(input), tuple(weight), settings, out_size)


def problem_of_d_input(grad_output: Tensor, weight: Tensor, settings: Sequence[Any]) -> Problem:
    """The convolution whose input's gradient is wanted; the last setting is the input's size."""
    *others, size = settings
    s = Settings(*others)
    _check_dims(grad_output, "grad_output", weight, "weight")
    input = (grad_output.shape[0], weight.shape[1] * s.groups, *size)
    return _with_output(problem_of(input, weight.shape, s), grad_output)


def problem_of_d_weight(grad_output: Tensor, input: Tensor, settings: Sequence[Any]) -> Problem:
    """The convolution whose weight's gradient is wanted; the last setting is the kernel's size."""
    *others, kernel = settings
    s = Settings(*others)
    _check_dims(grad_output, "grad_output", input, "input")
    weight = (grad_output.shape[1], input.shape[1] // max(1, s.groups), *kernel)
    return _with_output(problem_of(input.shape, weight, s), grad_output)


def _check_dims(first: Tensor, name: str, second: Tensor, other: str) -> None:
    if first.dim() != second.dim() or not 3 <= first.dim() <= 5:
        raise RuntimeError(
            f"{name} and {other} must have the same 3 to 5 dimensions, got {list(first.shape)} and "
            f"{list(second.shape)}"
        )


def _with_output(problem: Problem, grad_output: Tensor) -> Problem:
    if tuple(grad_output.shape) != problem.output:
        wanted = f"grad_output must have shape {list(problem.output)}"
        raise RuntimeError(f"{wanted}, got {list(grad_output.shape)}")
    return problem


def memory_format(*tensors: Tensor) -> torch.memory_format:
    """That of a result of these: channels_last if one of them is, as torch's convolution."""
    form = CHANNELS_LAST.get(tensors[0].dim(), torch.contiguous_format)
    for tensor in tensors:
        if not tensor.is_contiguous() and tensor.is_contiguous(memory_format=form):
            return form
    return torch.contiguous_format


def forward(
    input: Tensor, weight: Tensor, bias: Tensor | None, rng_state: Tensor, *settings: Any
) -> Tensor:
    """scale times (the convolution of each example with its masked weight, and its masked bias)."""
    problem = problem_of(input.shape, weight.shape, Settings(*settings))
    check_alike(input, weight, bias)
    patches = problem.prefers_patches(FORWARD)
    matrix = _widened(weight.reshape(weight.shape[0], problem.columns))
    biases = None if bias is None else _masked_biases(problem, _widened(bias), rng_state)

    def compute(part: Part) -> Tensor:
        images = _widened(input[part.examples])
        own = None if biases is None else biases[part.first_mask :][: part.masks]
        if patches:
            return _forward_by_patches(problem, part, images, matrix, own, rng_state)
        return _forward_by_groups(problem, part, images, matrix, own, rng_state)

    form = memory_format(input, weight)
    return _by_parts(problem.output, problem.parts(patches, input), compute, input, form)


def d_input(grad_output: Tensor, weight: Tensor, rng_state: Tensor, *settings: Any) -> Tensor:
    """The gradient of the input; the last of the settings is its size."""
    problem = problem_of_d_input(grad_output, weight, settings)
    check_alike(grad_output, weight)
    patches = problem.prefers_patches(D_INPUT)
    matrix = _widened(weight.reshape(weight.shape[0], problem.columns))

    def compute(part: Part) -> Tensor:
        grads = _widened(grad_output[part.examples])
        if patches:
            return _d_input_by_patches(problem, part, grads, matrix, rng_state)
        return _d_input_by_groups(problem, part, grads, matrix, rng_state)

    form = memory_format(grad_output, weight)
    return _by_parts(problem.input, problem.parts(patches, grad_output), compute, grad_output, form)


def d_weight(grad_output: Tensor, input: Tensor, rng_state: Tensor, *settings: Any) -> Tensor:
    """The gradient of the weight; the last of the settings is its kernel's size."""
    problem = problem_of_d_weight(grad_output, input, settings)
    check_alike(grad_output, input)
    patches = problem.prefers_patches(D_WEIGHT)
    compute = _d_weight_by_patches if patches else _d_weight_by_groups
    total = None  # in float, or double: parts are sums already
    with _no_autocast(input):
        for part in problem.parts(patches, input):
            grads, images = _widened(grad_output[part.examples]), _widened(input[part.examples])
            found = compute(problem, part, grads, images, rng_state)
            wide = found.float() if found.dtype in HALVES else found
            total = wide if total is None else total.add_(wide)
    if total is None:
        return input.new_zeros(problem.weight)
    return total.view(problem.weight).to(input.dtype)


# ---- one grouped convolution ---------------------------------------------------------------------


def _forward_by_groups(
    problem: Problem, part: Part, images: Tensor, matrix: Tensor, biases: Tensor | None,
    rng_state: Tensor,
) -> Tensor:  # fmt: skip
    s = problem.settings
    output = torch.convolution(
        _side_by_side(images, part), _masked_weights(problem, part, matrix, rng_state),
        None if biases is None else biases.reshape(-1),
        s.stride, s.padding, s.dilation, False, [0] * len(s.stride), part.masks * s.groups,
    )  # fmt: skip
    return _apart(output, part)


def _d_input_by_groups(
    problem: Problem, part: Part, grads: Tensor, matrix: Tensor, rng_state: Tensor
) -> Tensor:
    weights = _masked_weights(problem, part, matrix, rng_state)
    shape = (part.examples_per_mask, part.masks * problem.input[1], *problem.input[2:])
    images = grads.new_empty(1).expand(shape)  # its shape alone is looked at
    found = _convolution_backward(problem, part, grads, images, weights, (True, False, False))
    return _apart(found[0], part)


def _d_weight_by_groups(
    problem: Problem, part: Part, grads: Tensor, images: Tensor, rng_state: Tensor
) -> Tensor:
    shape = (part.masks * problem.weight[0], *problem.weight[1:])
    weights = grads.new_empty(1).expand(shape)  # its shape alone is looked at
    side_by_side = _side_by_side(images, part)
    found = _convolution_backward(problem, part, grads, side_by_side, weights, (False, True, False))
    stack = found[1].reshape(part.masks, problem.weight[0], problem.columns)
    bits = _bits(problem, part, stack[0], rng_state)
    s = problem.settings
    total: Tensor = extension.operators().mask_weight_sum(
        stack, rng_state, bits, s.p, part.masks, s.scale
    )
    return total


def _convolution_backward(
    problem: Problem, part: Part, grads: Tensor, images: Tensor, weights: Tensor,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    s = problem.settings
    found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward(
        _side_by_side(grads, part), images, weights, None,
        s.stride, s.padding, s.dilation, False, [0] * len(s.stride), part.masks * s.groups, wanted,
    )  # fmt: skip
    return found


def _masked_weights(problem: Problem, part: Part, matrix: Tensor, rng_state: Tensor) -> Tensor:
    """The part's weights one after another: [masks * out, in / groups, *kernel]."""
    s = problem.settings
    stack: Tensor = extension.operators().mask_weight(
        matrix, rng_state, _bits(problem, part, matrix, rng_state), s.p, part.masks, s.scale
    )
    return stack.view(part.masks * problem.weight[0], *problem.weight[1:])


def _side_by_side(images: Tensor, part: Part) -> Tensor:
    """[masks * examples, channels, *size] as [examples, masks * channels, *size], contiguous."""
    _, channels, *size = images.shape
    each = part.examples_per_mask
    apart = images.reshape(part.masks, each, channels, *size)
    return apart.transpose(0, 1).reshape(each, part.masks * channels, *size).contiguous()


def _apart(images: Tensor, part: Part) -> Tensor:
    """The inverse of `_side_by_side`."""
    each, channels, *size = images.shape
    stacked = images.reshape(each, part.masks, channels // part.masks, *size)
    return stacked.transpose(0, 1).flatten(0, 1)


# ---- products over positions ---------------------------------------------------------------------


def _forward_by_patches(
    problem: Problem, part: Part, images: Tensor, matrix: Tensor, biases: Tensor | None,
    rng_state: Tensor,
) -> Tensor:  # fmt: skip
    rows = _patches(problem, images)
    output = extension.operators().dropconnect_linear(
        rows, matrix, None, *_masks(problem, part, matrix, rng_state)
    )
    if biases is not None:
        by_mask = output.view(part.masks, -1, problem.weight[0])
        by_mask += biases[:, None]
    return output.view(len(images), *problem.out_size, problem.weight[0]).movedim(-1, 1)


def _d_input_by_patches(
    problem: Problem, part: Part, grads: Tensor, matrix: Tensor, rng_state: Tensor
) -> Tensor:
    rows = extension.operators().dropconnect_linear_d_input(
        _positions(grads), matrix, *_masks(problem, part, matrix, rng_state)
    )
    return _sum_of_patches(problem, rows, len(grads))


def _d_weight_by_patches(
    problem: Problem, part: Part, grads: Tensor, images: Tensor, rng_state: Tensor
) -> Tensor:
    weight = grads.new_empty(1).expand(problem.weight[0], problem.columns)
    total: Tensor = extension.operators().dropconnect_linear_d_weight(
        _positions(grads), _patches(problem, images), *_masks(problem, part, weight, rng_state)
    )
    return total


def _masks(problem: Problem, part: Part, matrix: Tensor, rng_state: Tensor) -> tuple[Any, ...]:
    """The last arguments of the products of DropConnect."""
    s = problem.settings
    rows_per_mask = part.examples_per_mask * math.prod(problem.out_size)
    bits = _bits(problem, part, matrix, rng_state)
    return rng_state, bits, s.p, rows_per_mask, s.scale


def _positions(maps: Tensor) -> Tensor:
    """[examples, channels, *size] as a row for each position."""
    return maps.movedim(1, -1).reshape(-1, maps.shape[1])


def _patches(problem: Problem, images: Tensor) -> Tensor:
    """What each position of the output is computed from: [positions, in * kernel].

    In memory it is the transposed, whose rows are runs of pixels.
    """
    s = problem.settings
    padded = F.pad(images, _both_sides(s.padding)) if any(s.padding) else images
    of_example, of_channel, *of_pixel = padded.stride()
    within = [step * dilate for step, dilate in zip(of_pixel, s.dilation, strict=True)]
    between = [step * stride for step, stride in zip(of_pixel, s.stride, strict=True)]
    kernel, channels = problem.weight[2:], images.shape[1]
    windows = padded.as_strided(
        (channels, *kernel, len(images), *problem.out_size),
        (of_channel, *within, of_example, *between),
    )
    return windows.reshape(problem.columns, len(images) * math.prod(problem.out_size)).T


def _sum_of_patches(problem: Problem, rows: Tensor, examples: int) -> Tensor:
    """The transposed of `_patches`: each pixel is the sum of its places in all patches."""
    s = problem.settings
    channels, size, kernel = problem.input[1], problem.input[2:], problem.weight[2:]
    patches = rows.T.contiguous().view(channels, *kernel, examples, *problem.out_size)
    padded = [length + 2 * pad for length, pad in zip(size, s.padding, strict=True)]
    dtype = torch.float32 if rows.dtype in HALVES else rows.dtype
    total = rows.new_zeros((channels, examples, *padded), dtype=dtype)
    for place in itertools.product(*map(range, kernel)):
        pixels = [
            slice(k * dilate, k * dilate + (length - 1) * stride + 1, stride)
            for k, dilate, stride, length in zip(
                place, s.dilation, s.stride, problem.out_size, strict=True
            )
        ]
        found: tuple[slice, ...] = (slice(None), slice(None), *pixels)
        of_all: tuple[slice | int, ...] = (slice(None), *place)
        total[found] += patches[of_all]
    for dim, (length, pad) in enumerate(zip(size, s.padding, strict=True), 2):
        total = total.narrow(dim, pad, length)
    return total.transpose(0, 1)


def _both_sides(padding: Sequence[int]) -> list[int]:
    """As torch.nn.functional.pad has it: the last dimension first."""
    return [pad for pad in reversed(padding) for _ in range(2)]


# ---- what both need ------------------------------------------------------------------------------


def _bits(problem: Problem, part: Part, matrix: Tensor, rng_state: Tensor) -> Tensor | None:
    """The part's masks as stored bits; None where kernels draw the same, from mask 0 on."""
    if part.first_mask == 0:
        return None
    bits: Tensor = extension.operators().dropconnect_mask_bits(
        matrix, rng_state, part.masks, problem.settings.p, part.first_mask
    )
    return bits


def _masked_biases(problem: Problem, bias: Tensor, rng_state: Tensor) -> Tensor:
    """[masks, out], of all masks: the layer of a bias alone is one without input features."""
    s = problem.settings
    masks = -(-problem.input[0] // s.examples_per_mask)
    input, weight = bias.new_zeros(masks, 0), bias.new_zeros(len(bias), 0)
    biases: Tensor = extension.operators().dropconnect_linear(
        input, weight, bias, rng_state, None, s.p, 1, s.scale
    )
    return biases


def _by_parts(
    shape: Shape,
    parts: list[Part],
    compute: Callable[[Part], Tensor],
    like: Tensor,
    form: torch.memory_format,
) -> Tensor:
    """The examples of all parts."""
    with _no_autocast(like):
        if len(parts) == 1:
            found = compute(parts[0]).to(like.dtype).contiguous(memory_format=form)
            # Dimensions of size 1 may have any strides in either format; here those of torch.empty.
            strides = torch.empty(shape, device="meta", memory_format=form).stride()
            return found.as_strided(shape, strides)
        result = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=form)
        for part in parts:
            result[part.examples] = compute(part)
        return result


def _no_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """What torch's convolutions are called in: the operands have been cast."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if is_autocast_enabled(kind) else nullcontext()


def _widened(tensor: Tensor) -> Tensor:
    """In the type in which it is multiplied."""
    if not tensor.is_cpu or tensor.dtype not in HALVES:
        return tensor
    fast = tensor.dtype == torch.bfloat16 and _multiplies_bfloats()
    return tensor if fast else tensor.float()


@cache
def _multiplies_bfloats() -> bool:
    """Whether the processor multiplies bf16 in tiles."""
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("amx_tile"))


def check_alike(first: Tensor, *others: Tensor | None) -> None:
    """The operands have one dtype and device."""
    for other in others:
        if other is not None and (other.dtype, other.device) != (first.dtype, first.device):
            raise RuntimeError(
                f"operands must have one dtype and device, got {first.dtype} on {first.device} and "
                f"{other.dtype} on {other.device}"
            )
