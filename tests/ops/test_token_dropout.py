"""Whole tokens zeroed, and patches taken out of the sequence."""

from __future__ import annotations

import math

import pytest
import torch
from support.tensors import DTYPES, layouts, random_tensor
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import fused_dropout
from fused_dropout import nn, reference
from fused_dropout.functional import dropout, patch_dropout, token_dropout


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5,), (40, 3), (4, 50, 7), (2, 3, 20, 9)])
def test_tokens(shape: tuple[int, ...], dtype: torch.dtype, backend: torch.device) -> None:
    """Token l of example n has element n * L + l of the mask; all of it is kept or dropped."""
    input = random_tensor(shape, dtype)
    kept = fused_dropout.mask(math.prod(shape[:-1]), 0.3, seed=3, device=backend)
    kept = kept.view(*shape[:-1], 1).expand(shape)
    output = token_dropout(input, 0.3, seed=3)
    assert torch.equal(output, dropout(input, 0.3, broadcast_dims=(-1,), seed=3))
    assert torch.equal(output != 0, kept & (input != 0))
    exact = input.double() / reference.keep_rate(0.3)
    assert torch.allclose(output[kept].double(), exact[kept], rtol=torch.finfo(dtype).eps)


def test_wrong_arguments(place: torch.device) -> None:
    x = torch.zeros(2, 4, 3)
    for error, message, call in (
        (RuntimeError, r"must have shape \[..., L, D\]", lambda: token_dropout(torch.tensor(1.0))),
        (ValueError, "p, the drop probability", lambda: token_dropout(x, 1.5)),
        (ValueError, "prob, the drop probability", lambda: patch_dropout(x, -0.1)),
        (ValueError, "num_prefix_tokens must be at least 0", lambda: patch_dropout(x, 0.5, -1)),
        (TypeError, "num_prefix_tokens must be an int", lambda: patch_dropout(x, 0.5, 1.5)),
        (TypeError, "ordered must be a bool", lambda: patch_dropout(x, 0.5, 1, 1)),
        (TypeError, "x must be a Tensor", lambda: patch_dropout([1, 2], 0.5)),
        (RuntimeError, r"x must have shape \[N, 5 \+ patches", lambda: patch_dropout(x, 0.5, 5)),
        (RuntimeError, r"x must have shape \[N, 1 \+ patches", lambda: patch_dropout(x[0, 0])),
        (ValueError, "at most one", lambda: patch_dropout(x, seed=1, rng_state=torch.zeros(2))),
        (ValueError, "prob, the drop", lambda: nn.PatchDropout(2.0)),
    ):
        with pytest.raises(error, match=message):
            call()


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("prob", [0.1, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("ordered", [False, True])
def test_patches(prob: float, prefix: int, ordered: bool, place: torch.device) -> None:
    """The number that timm keeps, those with the least random numbers; prefix tokens stay."""
    for samples, patches in ((5, 49), (1, 1), (3, 2), (0, 7), (2, 0)):
        x = random_tensor((samples, prefix + patches, 4))
        output, stay = patch_dropout(x, prob, prefix, ordered, return_indices=True, seed=9)
        keep = min(patches, max(1, int(patches * (1.0 - prob))))
        assert stay.shape == (samples, keep) and stay.dtype == torch.int64
        noise = fused_dropout.uniform_noise((samples, patches), seed=9, device=place)
        for sample in range(samples):
            chosen = sorted(range(patches), key=noise[sample].tolist().__getitem__)[:keep]
            assert stay[sample].tolist() == (sorted(chosen) if ordered else chosen)
            assert torch.equal(output[sample, :prefix], x[sample, :prefix])
            assert torch.equal(output[sample, prefix:], x[sample, prefix:][stay[sample]])


def test_patches_of_any_layout_and_dtype(place: torch.device) -> None:
    x = random_tensor((3, 17, 6))
    expected = patch_dropout(x, 0.5, seed=1)
    for name, other in layouts(x):
        assert torch.equal(patch_dropout(other, 0.5, seed=1), expected), name
    ids = torch.arange(51).view(3, 17)
    assert patch_dropout(ids, 0.5, seed=1).dtype == torch.int64
    assert patch_dropout(x[..., None, None], 0.5, seed=1).shape == (3, 9, 6, 1, 1)


def test_gradients_of_patches(place: torch.device) -> None:
    x = random_tensor((2, 7, 3), torch.float64).requires_grad_()

    def layer(x: Tensor) -> Tensor:
        return patch_dropout(x, 0.5, seed=4)

    assert gradcheck(layer, x) and gradgradcheck(layer, x)
    (grad,) = torch.autograd.grad(layer(x).sum(), x)
    _, stay = patch_dropout(x, 0.5, return_indices=True, seed=4)
    expected = torch.zeros(2, 6, dtype=torch.float64).scatter(1, stay, 1.0)
    assert torch.equal(grad[:, 0], torch.ones(2, 3, dtype=torch.float64))
    assert torch.equal(grad[:, 1:], expected[..., None].expand(2, 6, 3))


def test_every_patch_is_as_likely(place: torch.device) -> None:
    """And every pair of them: within 5 standard errors each, a false alarm in 6,000 runs."""
    samples, patches, keep = 40_000, 16, 4
    x = torch.zeros(samples, patches, 1)
    _, stay = patch_dropout(x, 1 - keep / patches, 0, return_indices=True, seed=2)
    chosen = torch.zeros(samples, patches).scatter(1, stay, 1.0)
    rate = keep / patches
    error = math.sqrt(rate * (1 - rate) / samples)
    assert (chosen.mean(0) - rate).abs().max() <= 5 * error
    pairs = chosen.T @ chosen / samples
    both = rate * (keep - 1) / (patches - 1)
    off = pairs - torch.diag(pairs.diag()) - both * (1 - torch.eye(patches))
    assert off.abs().max() <= 5 * math.sqrt(both * (1 - both) / samples)
    first = (
        torch.bincount(stay[:, 0], minlength=patches) / samples
    )  # unordered: any one comes first
    assert (first - 1 / patches).abs().max() <= 5 * math.sqrt(15 / 256 / samples)


def test_patches_in_evaluation(place: torch.device) -> None:
    x = random_tensor((2, 5, 3))
    before = torch.random.get_rng_state()
    assert patch_dropout(x, 0.5, training=False) is x
    output, stay = patch_dropout(x, 0.0, return_indices=True)
    assert output is x and stay is None
    layer = nn.PatchDropout(0.5, return_indices=True)
    assert layer.eval()(x) == (x, None)
    assert torch.equal(torch.random.get_rng_state(), before)
    output, stay = layer.train()(x)
    assert output.shape == (2, 3, 3) and stay.shape == (2, 2)
    assert "prob=0.5, num_prefix_tokens=1, ordered=False, return_indices=True" in repr(layer)


def test_a_length_that_changes_compiles_once() -> None:
    compiled = torch.compile(patch_dropout, fullgraph=True, dynamic=True, backend="eager")
    for tokens in (9, 12, 30):
        x = random_tensor((2, tokens, 3))
        assert torch.equal(compiled(x, 0.5, seed=1), patch_dropout(x, 0.5, seed=1))
