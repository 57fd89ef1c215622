"""embedding_dropout and nn.EmbeddingDropout: whole words are dropped, in all their places."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from support.accuracy import is_accurate
from support.tensors import DTYPES
from torch import Tensor
from torch.nn import functional as F

import fused_dropout
from fused_dropout import mc_predict, reference
from fused_dropout._tools.memory import kept_for_backward
from fused_dropout.functional import embedding_dropout
from fused_dropout.nn import EmbeddingDropout
from fused_dropout.schedules import LinearSchedule


def words_of(shape: tuple[int, ...], rows: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.randint(rows, shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def table_of(rows: int, length: int, dtype: torch.dtype = torch.float32) -> Tensor:
    draw = torch.Generator().manual_seed(2)
    return torch.randn(rows, length, generator=draw, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "rows", "length"),
    [
        ((), 1, 1),
        ((7,), 5, 3),
        ((4, 6), 300, 17),
        ((2, 3, 4), 129, 1),
        ((0, 4), 9, 8),
        ((5,), 4, 0),
    ],
)
@pytest.mark.parametrize("p", [0.5, 0.3, 0.0, 1.0])
def test_matches_reference(
    shape: tuple[int, ...], rows: int, length: int, p: float, dtype: torch.dtype
) -> None:
    words = words_of(shape, rows)
    weight = table_of(rows, length, dtype).requires_grad_()
    output = embedding_dropout(words, weight, p, seed=7)
    assert output.dtype == dtype and output.shape == (*shape, length)
    grad = torch.randn(output.shape).to(dtype)
    ours = (output, *torch.autograd.grad(output, weight, grad))

    def written_out(weight: Tensor, grad: Tensor, **keywords: Any) -> list[Tensor]:
        weight = weight.detach().requires_grad_()
        output = reference.embedding_dropout(words, weight, p, seed=7)
        return [output.detach(), *torch.autograd.grad(output, weight, grad)]

    own = written_out(weight, grad)
    truth = written_out(weight.double(), grad.double())
    assert is_accurate(ours[0], own[0], truth[0])
    assert is_accurate(ours[1], own[1], truth[1])
    assert torch.equal(ours[0] != 0, truth[0].to(dtype) != 0)


def test_a_word_is_dropped_everywhere_or_nowhere() -> None:
    words, kept = words_of((40, 30), 50), fused_dropout.mask(50, 0.5, seed=3)
    output = embedding_dropout(words, torch.ones(50, 4), 0.5, seed=3)
    assert torch.equal(output, torch.where(kept[words], 2.0, 0.0).unsqueeze(-1).expand(40, 30, 4))
    by_state = embedding_dropout(
        words, torch.ones(50, 4), 0.5, rng_state=fused_dropout.make_rng_state(3)
    )
    assert torch.equal(by_state, output)


def test_random_sources() -> None:
    words, weight = words_of((40,), 50), torch.ones(50, 4)
    results = []
    for _ in range(2):
        torch.manual_seed(4)
        generator = torch.Generator().manual_seed(4)
        results += [
            embedding_dropout(words, weight), embedding_dropout(words, weight, generator=generator),
        ]  # fmt: skip
    assert all(torch.equal(result, results[0]) for result in results)
    assert not torch.equal(embedding_dropout(words, weight), embedding_dropout(words, weight))


@pytest.mark.parametrize("special", [math.nan, math.inf])
def test_what_is_dropped_is_zero(special: float) -> None:
    kept, words = fused_dropout.mask(20, 0.5, seed=2), torch.arange(20)
    weight = torch.full((20, 3), special).requires_grad_()
    output = embedding_dropout(words, weight, seed=2)
    assert torch.equal((output == 0).all(1), ~kept) and not output[kept].isfinite().any()
    grad = torch.where(kept[:, None], 1.0, special).expand(20, 3)
    (d_weight,) = torch.autograd.grad(output, weight, grad)
    assert torch.equal(d_weight, 2 * kept[:, None].float().expand(20, 3))


@pytest.mark.parametrize(
    "options",
    [
        {"padding_idx": 3},
        {"padding_idx": -1},
        {"max_norm": 1.0},
        {"max_norm": 1.0, "norm_type": 1.0},
        {"scale_grad_by_freq": True},
        {"sparse": True},
    ],
    ids=str,
)
def test_options_are_torch_s(options: dict[str, Any]) -> None:
    words = words_of((6, 9), 11)
    ours, theirs = (table_of(11, 5).requires_grad_() for _ in range(2))
    output = embedding_dropout(words, ours, 0.3, seed=1, **options)
    plain = F.embedding(words, theirs, **options)
    kept = fused_dropout.mask(11, 0.3, seed=1)[words].unsqueeze(-1)
    expected = torch.where(kept, plain, 0.0) / reference.keep_rate(0.3)
    torch.testing.assert_close(output, expected)
    output.square().sum().backward()
    expected.square().sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    assert ours.grad.is_sparse == theirs.grad.is_sparse == options.get("sparse", False)
    torch.testing.assert_close(ours.grad.to_dense(), theirs.grad.to_dense())
    assert torch.equal(ours, theirs), "max_norm writes to the rows that are looked up"


def test_only_rows_that_are_looked_up_are_touched() -> None:
    weight = torch.randn(1000, 64).requires_grad_()
    words = torch.tensor([3, 5])
    kept = kept_for_backward(lambda: embedding_dropout(words, weight, 0.3))
    assert sum(tensor.nbytes for tensor in kept) < 100
    assert embedding_dropout(words, torch.randn(1000, 64), 0.3).shape == (2, 64)
    whole = weight.numel() * 4
    assert max(tensor.nbytes for tensor in _made(lambda: embedding_dropout(words, weight))) < whole


def _made(call: Any) -> list[Tensor]:
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    made: list[Tensor] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            made.extend(leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor))
            return result

    with Recorder():
        call()
    return [tensor for tensor in made if tensor.untyped_storage().nbytes() == tensor.nbytes]


def test_derivatives_of_any_order() -> None:
    words = words_of((5,), 4)
    weight = table_of(4, 3, torch.float64).requires_grad_()
    call = lambda w: embedding_dropout(words, w, 0.4, seed=3) ** 3  # noqa: E731
    assert torch.autograd.gradcheck(call, weight, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, weight)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_indices_of_both_kinds(dtype: torch.dtype) -> None:
    output = embedding_dropout(words_of((4,), 9, dtype), table_of(9, 3), seed=1)
    assert torch.equal(output, embedding_dropout(words_of((4,), 9), table_of(9, 3), seed=1))


def test_vmap() -> None:
    words, weight = words_of((3, 40), 50), torch.ones(50, 2)
    for randomness in ("same", "different"):
        several = torch.func.vmap(embedding_dropout, in_dims=(0, None), randomness=randomness)(
            words, weight
        )
        alike = torch.func.vmap(embedding_dropout, (None, 0), randomness=randomness)(
            words[0], torch.ones(3, 50, 2)
        )
        assert several.shape == (3, 40, 2)
        assert torch.equal(alike[0], alike[1]) == (randomness == "same")


def built(**options: Any) -> EmbeddingDropout:
    torch.manual_seed(1)
    return EmbeddingDropout(30, 4, **options)


def test_the_module_stands_in_for_torch_s() -> None:
    torch.manual_seed(1)
    bare = torch.nn.Embedding(30, 4, padding_idx=2)
    layer = built(padding_idx=2, p=0.3)
    assert isinstance(layer, torch.nn.Embedding) and layer.training
    assert torch.equal(layer.weight, bare.weight)
    bare.load_state_dict(layer.state_dict())
    layer.load_state_dict(bare.state_dict())
    words = words_of((6, 7), 30)
    torch.manual_seed(3)
    output = layer(words)
    torch.manual_seed(3)
    assert torch.equal(output, embedding_dropout(words, layer.weight, 0.3, padding_idx=2))
    assert torch.equal(layer.eval()(words), bare(words))
    assert repr(layer) == "EmbeddingDropout(30, 4, padding_idx=2, p=0.3)"
    pretrained = EmbeddingDropout.from_pretrained(bare.weight, padding_idx=1, p=0.2)
    assert (pretrained.p, pretrained.padding_idx, pretrained.weight.requires_grad) == (
        0.2,
        1,
        False,
    )
    assert EmbeddingDropout(3, 2, device="meta", dtype=torch.float16).weight.is_meta


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_draw_the_same(clone: Any) -> None:
    layer, words = built(p=0.3, sparse=True), words_of((9,), 30)
    layer(words).sum().backward()
    other = clone(layer)
    outputs = []
    for module in (layer, other):
        torch.manual_seed(2)
        outputs.append(module(words))
    assert torch.equal(*outputs) and repr(other) == repr(layer)


def test_captured() -> None:
    """torch.compile, torch.export and torch.fx; fresh masks in each call."""
    layer, words = built(), words_of((9,), 30)
    torch.compiler.reset()
    captured = [
        torch.compile(layer, backend="aot_eager", fullgraph=True),
        torch.export.export(layer, (words,)).module(),
        torch.fx.symbolic_trace(layer),
    ]
    names = [node.name for node in captured[2].graph.nodes]
    assert names == ["input_1", "weight", "embedding_dropout", "output"]
    torch.manual_seed(5)
    expected = layer(words)
    for call in captured:
        torch.manual_seed(5)
        assert torch.equal(call(words), expected)
        assert any(not torch.equal(call(words), expected) for _ in range(3))


def test_monte_carlo_and_schedules_know_it() -> None:
    layer = built(p=0.4)
    _, variance = mc_predict(layer.eval(), words_of((9,), 30), 30)
    assert variance.amax() > 0
    LinearSchedule(layer, total_steps=2)
    assert layer.p == 0


WORDS = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        ((WORDS, torch.ones(3, 2), 1.5), {}, ValueError, "p, the drop probability.*got 1.5"),
        ((WORDS, torch.ones(3), 0.5), {}, RuntimeError, r"weight must have shape.*got \[3\]"),
        ((WORDS, torch.ones(3, 2).long()), {}, RuntimeError, "weight must have a dtype.*int64"),
        ((WORDS, [1.0]), {}, TypeError, "weight must be a Tensor, got list"),
        (([0, 1], torch.ones(3, 2)), {}, TypeError, "input must be a Tensor, got list"),
        ((WORDS.float(), torch.ones(3, 2)), {}, RuntimeError, "indices"),
        ((WORDS + 2, torch.ones(3, 2)), {}, IndexError, "index out of range"),
        ((WORDS - 1, torch.ones(3, 2)), {}, IndexError, "index out of range"),
        ((WORDS, torch.ones(3, 2).to_sparse()), {}, RuntimeError, "weight must be a dense"),
        ((WORDS, torch.ones(3, 2)), {"seed": 1.0}, TypeError, "seed must be an int"),
        (
            (WORDS, torch.ones(3, 2)),
            {"seed": 1, "generator": torch.Generator()},
            ValueError,
            "most",
        ),
        ((WORDS, torch.ones(3, 2)), {"padding_idx": 7}, Exception, "[Pp]adding_idx"),
    ],
)
def test_bad_arguments(arguments: Any, keywords: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        embedding_dropout(*arguments, **keywords)


def test_bad_arguments_of_the_module() -> None:
    for options, error, message in (
        ({"p": 2.0}, ValueError, "p, the drop probability"),
        ({"sparse": 1}, TypeError, "sparse must be a bool, got 1"),
        ({"scale_grad_by_freq": None}, TypeError, "scale_grad_by_freq must be a bool"),
    ):
        with pytest.raises(error, match=message):
            EmbeddingDropout(3, 2, **options)
    with pytest.raises(ValueError, match="p, the drop probability"):
        EmbeddingDropout.from_pretrained(torch.ones(3, 2), p=-1)
