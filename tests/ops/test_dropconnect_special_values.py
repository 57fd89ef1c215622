"""Infinite and NaN operands of dropconnect_linear reach exactly the results that keep them.

Where a kernel masks an operand and not the product, a dropped one would become 0 * inf = NaN, and
so would a column that only fills a panel up. Which results are finite is compared with the masks.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import fused_dropout
from fused_dropout.functional import dropconnect_linear

ROWS, OUT_FEATURES = 5, 19
P, SEED = 0.5, 2


def places(in_features: int) -> list[int]:
    """Columns at the ends of vectors, groups and the matrix."""
    ends = (0, 7, 8, 15, 16, 31, 127, 128, 255, 256, in_features - 1)
    return sorted({column for column in ends if column < in_features})


def spoil(matrix: Tensor, special: float) -> Tensor:
    """Writes `special` into some elements; returns where."""
    spoilt = torch.zeros(matrix.shape, dtype=torch.bool)
    columns = torch.tensor(places(matrix.shape[1]))
    spoilt[torch.arange(len(columns)) % len(matrix), columns] = True
    matrix[spoilt] = special
    return spoilt


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("special", [math.nan, math.inf])
@pytest.mark.parametrize("in_features", [3, 70, 128, 130, 300, 1030])
@pytest.mark.parametrize("operand", ["input", "weight", "grad"])
@pytest.mark.parametrize("storage", ["regenerate", "packed"])
def test_only_kept_products_are_special(
    operand: str,
    in_features: int,
    special: float,
    dtype: torch.dtype,
    storage: str,
    backend: torch.device,
) -> None:
    kept = fused_dropout.mask((ROWS * OUT_FEATURES, in_features), P, seed=SEED)
    kept = kept.view(ROWS, OUT_FEATURES, in_features)
    input = torch.ones(ROWS, in_features, dtype=dtype)
    weight = torch.ones(OUT_FEATURES, in_features, dtype=dtype)
    grad = torch.ones(ROWS, OUT_FEATURES, dtype=dtype)
    of_input, of_weight, of_grad = (
        torch.zeros(t.shape, dtype=torch.bool) for t in (input, weight, grad)
    )
    if operand == "input":
        of_input = spoil(input, special)
    elif operand == "weight":
        of_weight = spoil(weight, special)
    else:
        of_grad = spoil(grad, special)
    leaves = [input.requires_grad_(), weight.requires_grad_()]
    output = dropconnect_linear(*leaves, None, P, seed=SEED, mask_storage=storage)
    d_input, d_weight = torch.autograd.grad(output, leaves, grad)
    (d_input_alone,) = torch.autograd.grad(
        dropconnect_linear(input, weight.detach(), None, P, seed=SEED), [input], grad
    )
    (d_weight_alone,) = torch.autograd.grad(
        dropconnect_linear(input.detach(), weight, None, P, seed=SEED), [weight], grad
    )

    x, w, g = of_input[:, None, :], of_weight[None], of_grad[:, :, None]
    assert torch.equal(~output.isfinite(), (kept & (x | w)).any(2))
    for of_d_input in (d_input, d_input_alone):
        assert torch.equal(~of_d_input.isfinite(), (kept & (w | g)).any(1))
    for of_d_weight in (d_weight, d_weight_alone):
        assert torch.equal(~of_d_weight.isfinite(), (kept & (x | g)).any(0))
