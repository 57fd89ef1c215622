"""DropConnect's kernels of every instruction set against the reference: forward, all gradients."""

from __future__ import annotations

import math

import pytest
import torch
from support.accuracy import is_accurate, own_and_truth
from support.dropconnect import random_operands
from support.tensors import DTYPES, assert_same_bits, layouts
from torch import Tensor

from fused_dropout import reference
from simd_on_any_cpu.kernels import OUT, Kernels, Layer, Random, filled, matrix_of

SEED, OFFSET = 7, 2**33 + 1
NAMES = ("output", "d_input", "d_weight", "d_bias")
# (rows, in_features, out_features, rows per mask): edges of lanes, groups, tiles, panels and
# blocks; masks shared by rows of several tiles.
SHAPES = (
    (1, 1, 1, 1),
    (3, 127, 5, 1),
    (7, 128, 8, 2),
    (6, 257, 33, 6),
    (13, 1030, 17, 1),
    (98, 70, 131, 40),
    (530, 33, 9, 1),
)


class Problem:
    """A layer's operands, and its results by the kernels."""

    def __init__(self, kernels: Kernels, operands: tuple[Tensor, ...], p: float, share: int):
        self.kernels = kernels
        self.input, self.weight, self.bias, self.grad = operands
        self.dtype = self.input.dtype
        self.random = Random(SEED, OFFSET, p)
        q = reference.keep_rate(p)
        rows, in_features = self.input.shape
        scale = 1 / q if q > 0 else 0.0
        self.layer = Layer(rows, in_features, self.weight.shape[0], share, scale)

    def stored_masks(self) -> Tensor:
        words = self.kernels.dropconnect_mask_words(self.layer)
        entry = self.kernels.dropconnect_mask_bits
        return filled((words,), torch.int32, entry, self.random, self.layer, OUT)

    def output(self, masks: Tensor | None) -> Tensor:
        matrices = (matrix_of(self.input), matrix_of(self.weight))
        known = (self.dtype, self.random, self.layer, masks, *matrices, self.bias)
        shape = (self.input.shape[0], self.weight.shape[0])
        entry = self.kernels.dropconnect_forward
        return filled(shape, self.dtype, entry, *known, self.bias.stride(0), OUT)

    def gradients(self, masks: Tensor | None) -> list[Tensor]:
        """d_input and d_weight of one call, and d_bias."""
        operands = (self.grad, self.input, self.weight)
        known = (self.dtype, self.random, self.layer, masks, *map(matrix_of, operands))
        results = []

        def both(d_input: Tensor) -> None:
            entry, shape = self.kernels.dropconnect_backward, tuple(self.weight.shape)
            results.append(filled(shape, self.dtype, entry, *known, d_input, OUT))

        d_input = filled(tuple(self.input.shape), self.dtype, both, OUT)
        known_to_bias = (self.dtype, self.random, self.layer, matrix_of(self.grad))
        entry, shape = self.kernels.dropconnect_bias_grad, tuple(self.bias.shape)
        d_bias = filled(shape, self.dtype, entry, *known_to_bias, OUT)
        return [d_input, *results, d_bias]

    def alone(self, masks: Tensor | None) -> list[Tensor]:
        """d_input and d_weight, each of a call that leaves out the other and its operand."""
        run = self.kernels.dropconnect_backward
        grad, input, weight = map(matrix_of, (self.grad, self.input, self.weight))
        known = (self.dtype, self.random, self.layer, masks, grad)
        shapes = (tuple(self.input.shape), tuple(self.weight.shape))
        d_input = filled(shapes[0], self.dtype, run, *known, None, weight, OUT, None)
        d_weight = filled(shapes[1], self.dtype, run, *known, input, None, None, OUT)
        return [d_input, d_weight]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "ins", "outs", "share"), SHAPES)
def test_simd_matches_reference(
    kernels: Kernels, rows: int, ins: int, outs: int, share: int, dtype: torch.dtype
) -> None:
    operands = random_operands((rows, ins), outs, dtype, seed=rows)
    for p in (0.5, 0.1):
        problem = Problem(kernels, operands, p, share)
        ours = [problem.output(None), *problem.gradients(None)]
        own, truth = own_and_truth(
            reference.dropconnect_linear, operands, p=p, mask=share, seed=SEED, offset=OFFSET
        )
        for name, a, b, t in zip(NAMES, ours, own, truth, strict=True):
            assert is_accurate(a, b, t), f"{name} at p = {p}"


@pytest.mark.parametrize(("rows", "ins", "outs", "share"), SHAPES[1:])
def test_same_bits_from_stored_masks_and_from_parts(
    kernels: Kernels, rows: int, ins: int, outs: int, share: int
) -> None:
    problem = Problem(kernels, random_operands((rows, ins), outs, torch.float32), 0.3, share)
    masks = problem.stored_masks()
    drawn = [problem.output(None), *problem.gradients(None)]
    stored = [problem.output(masks), *problem.gradients(masks)]
    for name, a, b in zip(NAMES, drawn, stored, strict=True):
        assert_same_bits(a, b, name)
    for name, a, b in zip(NAMES[1:], problem.alone(masks), drawn[1:], strict=False):
        assert_same_bits(a, b, name)


def test_any_strides(kernels: Kernels) -> None:
    operands = random_operands((9, 140), 21, torch.bfloat16)
    plain = Problem(kernels, operands, 0.5, 1)
    expected = [plain.output(None), *plain.gradients(None)]
    input, weight, bias, grad = operands
    for (what, a), (_, b), (_, g) in zip(
        layouts(input), layouts(weight), layouts(grad), strict=True
    ):
        problem = Problem(kernels, (a, b, bias, g), 0.5, 1)
        for x, y in zip([problem.output(None), *problem.gradients(None)], expected, strict=True):
            assert_same_bits(x, y, what)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("special", [math.inf, math.nan])
def test_a_dropped_infinity_adds_nothing(
    kernels: Kernels, special: float, dtype: torch.dtype
) -> None:
    """Infinite weights in a column behind 15 finite ones, where the mask has both bits."""
    rows, ins, outs = 5, 131, 9
    input, weight, bias, grad = random_operands((rows, ins), outs, dtype)
    weight[:, 64] = special
    input[2, 130] = special
    kept = reference.mask((rows, outs, ins), 0.5, seed=SEED, offset=OFFSET)
    problem = Problem(kernels, (input, weight, bias, grad), 0.5, 1)
    output = problem.output(None)
    reached = kept[:, :, 64].clone()
    reached[2] |= kept[2, :, 130]
    assert torch.equal(output.isfinite(), ~reached)
    d_input, d_weight, _ = problem.gradients(None)
    assert torch.equal(d_input.isfinite(), torch.arange(ins).ne(64) | ~kept.any(1))
    hit = torch.zeros(outs, ins, dtype=torch.bool)
    hit[:, 130] = kept[2, :, 130]
    assert torch.equal(d_weight.isfinite(), ~hit)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_nothing_and_everything_dropped(kernels: Kernels, p: float) -> None:
    operands = random_operands((7, 150), 11, torch.float32)
    problem = Problem(kernels, operands, p, 1)
    ours = [problem.output(None), *problem.gradients(None)]
    own, truth = own_and_truth(
        reference.dropconnect_linear, operands, p=p, mask=1, seed=SEED, offset=OFFSET
    )
    for a, b, t in zip(ours, own, truth, strict=True):
        assert is_accurate(a, b, t)
        assert p == 0 or not a.any()
