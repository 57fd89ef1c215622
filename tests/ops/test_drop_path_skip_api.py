"""drop_path_skip: what users put in, its module, and mistakes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.drop_path_skip import Seen, square
from torch import Tensor

import fused_dropout
from fused_dropout import reference
from fused_dropout.functional import drop_path, drop_path_add, drop_path_skip
from fused_dropout.nn import DropPathSkip

# ---- what users put in ---------------------------------------------------------------------------


def test_several_inputs(place: torch.device) -> None:
    x, context = torch.randn(30, 4), torch.randn(30, 5, 4)
    context.requires_grad_()

    def attend(x: Tensor, mask: None, context: Tensor) -> Tensor:
        assert mask is None
        return (x[:, None] * context).sum(1)

    output = drop_path_skip((x, None, context), attend, 0.5, True, residual=x, seed=1)
    expected = drop_path_add(x, attend(x, None, context), 0.5, True, seed=1)
    assert torch.equal(output, expected)
    grads = [torch.autograd.grad(each.sum(), context)[0] for each in (output, expected)]
    assert torch.equal(*grads)


def test_tokens_in_another_shape_and_type_out(place: torch.device) -> None:
    """x may be whatever the module takes."""
    table = torch.nn.Embedding(9, 6)
    tokens = torch.randint(9, (30, 7))
    output = drop_path_skip(tokens, table, 0.5, True, seed=1)
    assert torch.equal(output, drop_path(table(tokens), 0.5, True, seed=1))
    output = drop_path_skip(tokens, lambda x: table(x).mean((1, 2)), 0.5, True, seed=1)
    assert output.shape == (30,) and 0 < output.count_nonzero() < 30


def test_autocast(place: torch.device) -> None:
    """The branch is in half precision, the residual is not, and neither is the sum."""
    layer, x = torch.nn.Linear(4, 4), torch.randn(30, 4, requires_grad=True)
    with torch.autocast(place.type, torch.bfloat16):
        output = drop_path_skip(x, layer, 0.5, True, residual=x, seed=1)
        expected = drop_path_add(x, layer(x), 0.5, True, seed=1)
        half = drop_path_skip(x, layer, 0.5, True, seed=1)
    assert output.dtype == torch.float32 and half.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected, rtol=0, atol=0.02)  # by rows: one rounding
    ours, theirs = (
        torch.autograd.grad(each.sum(), [x, *layer.parameters()]) for each in (output, expected)
    )
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


def test_batch_norm_takes_its_statistics_over_the_kept(place: torch.device) -> None:
    norm = torch.nn.BatchNorm1d(3, momentum=1.0)
    x = torch.randn(40, 3)
    drop_path_skip(x, norm, 0.5, True, seed=1)
    kept = reference.mask(40, 0.5, seed=1).to(place)
    torch.testing.assert_close(norm.running_mean, x[kept].mean(0))
    assert norm.num_batches_tracked == 1


def test_a_module_that_writes_to_its_input(place: torch.device) -> None:
    """It has a copy where samples are dropped; else it does as without us."""
    x = torch.randn(30, 4)
    before = x.clone()
    relu = torch.nn.ReLU(inplace=True)
    for p in (0.5, 1.0):
        drop_path_skip(x, relu, p, True, residual=x, seed=1)
        assert torch.equal(x, before)


def test_strides_do_not_change_the_result(backend: torch.device) -> None:
    dense, other = torch.randn(2, 9, 3, 5, 4)
    spread = torch.full((9, 3, 5, 8), torch.nan)
    spread[..., ::2] = dense
    forms = [
        dense.contiguous(memory_format=torch.channels_last),
        dense.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
        spread[..., ::2],
    ]
    expected = drop_path_skip(dense, square, 0.4, True, residual=other, seed=1)
    for x in forms:
        plain = drop_path_skip(x, square, 0.4, True, seed=1)
        assert torch.equal(plain, drop_path(square(x), 0.4, True, seed=1))
        assert plain.stride() == drop_path(square(x), 0.4, True, seed=1).stride()
        for residual in (other, other.contiguous(memory_format=torch.channels_last)):
            output = drop_path_skip(x, square, 0.4, True, residual=residual, seed=1)
            assert torch.equal(output, expected) and output.stride() == residual.stride()
    same = dense[:1].expand(9, 3, 5, 4)
    output = drop_path_skip(same, square, 0.4, True, residual=same, seed=1)
    assert torch.equal(output, drop_path_add(same, square(same), 0.4, True, seed=1))


def test_a_whole_block_trains_as_by_zeroing(place: torch.device) -> None:
    """Attention and a feed-forward layer, each in a branch of its own."""

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(8) for _ in range(2))
            self.attention = torch.nn.MultiheadAttention(8, 2, batch_first=True)
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 8)
            )
            self.drop_path = DropPathSkip(0.4)

        def attend(self, x: Tensor) -> Tensor:
            x = self.norms[0](x)
            return self.attention(x, x, x, need_weights=False)[0]

        def feed(self, x: Tensor) -> Tensor:
            return self.layers(self.norms[1](x))

        def forward(self, x: Tensor, skip: bool = True) -> Tensor:
            for branch in (self.attend, self.feed):
                if skip:
                    x = self.drop_path(x, branch, residual=x)
                else:
                    x = drop_path_add(x, branch(x), 0.4, self.training)
            return x

    block = Block().double()
    x = torch.randn(12, 5, 8, dtype=torch.float64)
    for _ in range(3):
        found = []
        for skip in (True, False):
            torch.manual_seed(9)
            loss = block(x, skip).square().sum()
            found.append([loss, *torch.autograd.grad(loss, list(block.parameters()))])
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other)
    block.eval()
    assert torch.equal(block(x), block(x, skip=False))


# ---- the module, and mistakes --------------------------------------------------------------------


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_module(clone: Any) -> None:
    layer = clone(DropPathSkip(0.4, scale_by_keep=False))
    assert repr(layer) == "fused_dropout.nn.DropPathSkip(drop_prob=0.400)"
    assert not layer.state_dict()
    x = torch.randn(50, 3)
    torch.manual_seed(13)
    expected = drop_path(square(x), 0.4, True, False)
    torch.manual_seed(13)
    assert torch.equal(layer(x, square), expected)
    with fused_dropout.mc_dropout(layer.eval()):
        assert layer.training
    assert torch.equal(layer(x, square, residual=x), x + square(x))
    with pytest.raises(ValueError, match=r"drop_prob.*but got 2"):
        DropPathSkip(2)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"drop_prob": 1.5}, ValueError, "drop_prob.*but got 1.5"),
        ({"module": 3}, TypeError, "module must be a Module or a function, got int"),
        ({"x": [torch.ones(4, 3)]}, TypeError, "x must be a Tensor, got list"),
        ({"x": ()}, TypeError, "x must be a Tensor or a tuple with a Tensor, got no Tensor"),
        ({"x": (None,)}, TypeError, "got no Tensor"),
        ({"x": torch.tensor(1.0)}, IndexError, "x .* without dimensions"),
        ({"x": torch.ones(4, 3).to_sparse()}, RuntimeError, "x must be a dense"),
        ({"x": (torch.ones(4), torch.ones(3))}, RuntimeError, r"x\[1\] must have a row.*; got 3"),
        ({"residual": torch.ones(3, 3)}, RuntimeError, "residual must have a row.*4; got 3"),
        ({"residual": 1.0}, TypeError, "residual must be a Tensor, got float"),
        ({"residual": torch.ones(4, 3, device="meta")}, RuntimeError, "residual must be on"),
        ({"seed": 1, "generator": torch.Generator()}, ValueError, "generator and seed"),
        ({"rng_state": torch.ones(3)}, ValueError, "rng_state must be an int64"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("training", [True, False])
def test_bad_arguments(
    change: dict[str, Any], error: type[Exception], text: str, training: bool
) -> None:
    """The module does not run. A random state is looked at where something is drawn."""
    training = training or "rng_state" in change
    seen = Seen()
    arguments = {"x": torch.ones(4, 3), "module": seen, "drop_prob": 0.5, **change}
    with pytest.raises(error, match=text):
        drop_path_skip(training=training, **arguments)
    assert seen.samples == []


@pytest.mark.parametrize(
    ("module", "error", "text"),
    [
        (lambda x: (x, x), TypeError, "module must return a Tensor, got tuple; .*lambda"),
        (lambda x: x.sum(), RuntimeError, r"module must return a row .* got shape \[\]"),
        (lambda x: x[:1], RuntimeError, r"a row for each of its \d+ samples, got shape \[1, 3\]"),
        (lambda x: x.to_sparse(), RuntimeError, "module's output must be a dense"),
        (lambda x: x.sum(1), RuntimeError, r"module's output must have shape \[\d+, 3\], got"),
        (lambda x: x.to("meta"), RuntimeError, "module's output must be on the device"),
        (lambda x: x.long(), RuntimeError, "module's output must have a dtype.*int64"),
    ],
)
@pytest.mark.parametrize("p", [0.5, 1e-4])
def test_bad_modules(
    module: Callable[..., Any], error: type[Exception], text: str, p: float
) -> None:
    x = torch.ones(40, 3)
    with pytest.raises(error, match=text):
        drop_path_skip(x, module, p, True, residual=x, seed=1)
