"""mc_predict's entropies and samples are those of its predictions; loaders give what batches do."""

from __future__ import annotations

import copy
import math
import pickle
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from fused_dropout import mc_predict
from fused_dropout.nn import Dropout, DropPath


def softmax(y: Tensor) -> Tensor:
    return y.softmax(-1)


def classifier() -> nn.Sequential:
    """For [N, 6] to logits [N, 3]."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), nn.Tanh(), Dropout(0.5), nn.Linear(20, 3))


def entropy_of(probabilities: Tensor, dim: int = -1) -> Tensor:
    return torch.special.entr(probabilities.double()).sum(dim)


# ---- entropy and mutual information --------------------------------------------------------------


@pytest.mark.parametrize("masks", ["sample", "pass"])
@pytest.mark.parametrize("samples_per_pass", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_entropies_are_those_of_the_samples(
    masks: str, samples_per_pass: int, dtype: torch.dtype, place: torch.device
) -> None:
    model, x = classifier().to(dtype), torch.randn(5, 6).to(dtype)
    arguments: dict[str, Any] = {"masks": masks, "samples_per_pass": samples_per_pass}
    found = mc_predict(model, x, 8, transform=softmax, class_dim=-1, keep_samples=True, **arguments)
    assert found.samples.shape == (8, 5, 3) and found.samples.dtype == dtype
    variance, mean = torch.var_mean(found.samples.double(), 0)
    wanted = entropy_of(mean)
    information = wanted - entropy_of(found.samples).mean(0)
    for ours, exact in (
        (found.mean, mean),
        (found.variance, variance),
        (found.entropy, wanted),
        (found.mutual_information, information),
    ):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        assert ours.dtype == wide
        torch.testing.assert_close(ours, exact.to(wide), rtol=1e-5, atol=1e-8)
    assert (found.mutual_information > 0).all()
    assert (found.mutual_information < found.entropy).all()
    assert (found.entropy < math.log(3)).all()


def test_one_class_and_fair_coins() -> None:
    """Masks that disagree altogether: all of ln 2 is information. That agree: none is."""

    class Coin(nn.Module):
        drops_in_training = True
        turns = 0

        def forward(self, x: Tensor) -> Tensor:
            self.turns += 1
            sure = x.new_tensor([[0.0, 1.0]] if self.turns % 2 else [[1.0, 0.0]])
            return torch.cat([sure, x.new_full((1, 2), 0.5)])

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # from log 0, for instance
        found = mc_predict(Coin(), torch.ones(2, 2), 10, class_dim=1)
    ln2 = math.log(2)
    torch.testing.assert_close(found.entropy, torch.tensor([ln2, ln2]))
    assert found.mutual_information[0] == pytest.approx(ln2, rel=1e-6)
    assert found.mutual_information[1] == 0


@pytest.mark.parametrize("scale", [1e-2, 1e-4, 1e-6])
def test_a_small_mutual_information_does_not_drown(scale: float, place: torch.device) -> None:
    """It is of the order of scale^2, beside entropies of 1, from probabilities in float32."""
    drop = Dropout(0.5)
    logits = torch.randn(50, 10, dtype=torch.float64) * scale
    found = mc_predict(drop, logits, 20, transform=softmax, class_dim=-1, keep_samples=True)
    mean = found.samples.mean(0)
    divergence = (found.samples * (found.samples / mean).log()).sum(-1).mean(0)
    assert (found.mutual_information >= 0).all()
    torch.testing.assert_close(found.mutual_information, divergence, rtol=1e-3, atol=1e-15)
    assert divergence.max() < scale**2 * 10


def test_any_dimension(place: torch.device) -> None:
    """Of pixels, for instance; half precision stands for what a network under autocast gives."""
    x = torch.randn(2, 4, 3, 5)
    for dim in (1, -3):
        torch.manual_seed(1)
        found = mc_predict(nn.Dropout(0.5), x, 6, transform=lambda y: y.softmax(1), class_dim=dim)
        assert found.entropy.shape == found.mutual_information.shape == (2, 3, 5)
        torch.testing.assert_close(
            found.entropy, entropy_of(found.mean, 1).float(), rtol=1e-5, atol=1e-6
        )
    half = mc_predict(
        nn.Dropout(0.5), x.bfloat16(), 6, transform=lambda y: y.softmax(1), class_dim=1
    )
    assert half.entropy.dtype == torch.float32


def test_gradients_of_entropies(place: torch.device) -> None:
    """Finite where a probability is 0, and those of the definition elsewhere."""
    x = torch.randn(4, 3, dtype=torch.float64)
    x[0] *= 1e4  # a softmax of zeros and a one
    x.requires_grad_()
    torch.manual_seed(2)
    found = mc_predict(
        DropPath(0.5), x, 5, transform=softmax, class_dim=-1, keep_samples=True, enable_grad=True
    )
    ours = torch.autograd.grad(found.mutual_information.sum(), x, retain_graph=True)[0]
    assert ours.isfinite().all() and ours.count_nonzero() > 0
    mean = found.samples.mean(0)
    information = entropy_of(mean) - entropy_of(found.samples).mean(0)
    wanted = torch.autograd.grad(information[1:].sum(), x)[0]
    torch.testing.assert_close(ours[1:], wanted[1:])


def test_what_is_no_probabilities(place: torch.device) -> None:
    model, x = classifier(), torch.randn(5, 6)
    calls = {"n": 0}

    def counted(y: Tensor) -> Tensor:
        calls["n"] += 1
        return y

    with pytest.raises(ValueError, match=r"probabilities.*transform=.*y\.softmax\(-1\)"):
        mc_predict(model, x, 50, class_dim=-1, transform=counted)
    assert calls["n"] == 1, "the first prediction tells"
    with pytest.raises(ValueError, match="probabilities"):
        mc_predict(model, x, 5, class_dim=0, transform=softmax)
    with pytest.raises(ValueError, match="probabilities"):  # sums of 1, and below 0
        mc_predict(model, x, 5, class_dim=-1, transform=lambda y: softmax(y) * 4 - 1)
    late = iter([softmax] * 3 + [counted] * 3)
    with pytest.raises(ValueError, match="probabilities"):
        mc_predict(model, x, 6, class_dim=-1, transform=lambda y: next(late)(y))
    for dim in (2, -3):
        with pytest.raises(IndexError, match=f"class_dim must be a dimension.*2; got {dim}"):
            mc_predict(model, x, 5, class_dim=dim, transform=softmax)
    with pytest.raises(TypeError, match="class_dim must be an int, got float"):
        mc_predict(model, x, 5, class_dim=1.0)
    with pytest.raises(TypeError, match="keep_samples must be a bool, got 3"):
        mc_predict(model, x, 5, keep_samples=3)


def test_a_nan_stays_one(place: torch.device) -> None:
    x = torch.randn(3, 6)
    x[1] = math.nan
    found = mc_predict(classifier(), x, 5, class_dim=-1, transform=softmax)
    for values in (found.entropy, found.mutual_information):
        assert values.isnan().tolist() == [False, True, False]


# ---- the result ----------------------------------------------------------------------------------


def test_a_prediction_is_mean_and_variance(place: torch.device) -> None:
    """With whatever was asked for in attributes."""
    model, x = classifier(), torch.randn(5, 6)
    torch.manual_seed(3)
    plain = mc_predict(model, x, 5, transform=softmax)
    torch.manual_seed(3)
    full = mc_predict(model, x, 5, transform=softmax, class_dim=-1, keep_samples=True)
    for one, other in zip(plain, full, strict=True):
        assert torch.equal(one, other)
    assert len(full) == 2 and full._fields == ("mean", "variance")
    for name, how in (
        ("entropy", "class_dim="),
        ("mutual_information", "class_dim="),
        ("samples", "keep_samples=True"),
    ):
        assert hasattr(full, name) and not hasattr(plain, name)
        with pytest.raises(AttributeError, match=f"{name} was not asked for.*{how}"):
            getattr(plain, name)
    with pytest.raises(AttributeError, match="has no attribute 'median'"):
        full.median  # noqa: B018
    for clone in (copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))):
        again = clone(full)
        assert type(again) is type(full)
        assert torch.equal(again.samples, full.samples)
        assert torch.equal(again.entropy, full.entropy) and torch.equal(again.mean, full.mean)
    assert repr(plain).startswith("MCPrediction(mean=tensor(")
    assert ", mutual_information=tensor(" in repr(full)
    # What takes results apart knows the tuple.
    batched = torch.func.vmap(
        lambda x: mc_predict(model, x, 4, transform=softmax, class_dim=-1).entropy,
        randomness="different",
    )(x.expand(2, 5, 6))
    assert batched.shape == (2, 5)


# ---- loaders -------------------------------------------------------------------------------------


@pytest.mark.parametrize("masks", ["sample", "pass"])
def test_a_loader_gives_what_its_batches_give(masks: str, place: torch.device) -> None:
    model, x, labels = classifier(), torch.randn(11, 6), torch.randint(3, (11,))
    arguments: dict[str, Any] = {
        "masks": masks, "transform": softmax, "class_dim": -1, "keep_samples": True
    }  # fmt: skip
    torch.manual_seed(4)
    parts = [mc_predict(model, batch, 6, **arguments) for batch in x.split(4)]
    pairs = TensorDataset(x.cpu(), labels.cpu())

    class Named(NamedTuple):
        label: Tensor
        x: Tensor

    def generated() -> Iterator[Any]:
        for batch in x.cpu().split(4):
            yield Named(torch.zeros(len(batch)), batch)

    for loader, inputs in (
        (DataLoader(pairs, batch_size=4), None),
        (DataLoader(TensorDataset(x.cpu()), batch_size=4), None),
        (iter(x.split(4)), None),
        (generated(), lambda batch: batch.x),
        (iter([{"a": [b]} for b in x.cpu().split(4)]), lambda batch: batch["a"][0]),
    ):
        torch.manual_seed(4)
        if isinstance(loader, DataLoader):  # it draws a number, from torch's generator by default
            loader.generator = torch.Generator()
        found = mc_predict(model, loader, 6, inputs=inputs, **arguments)
        assert found.mean.device.type == place.type
        for name, dim in (
            ("mean", 0), ("variance", 0), ("entropy", 0), ("mutual_information", 0), ("samples", 1)
        ):  # fmt: skip
            wanted = torch.cat([getattr(part, name) for part in parts], dim)
            assert torch.equal(getattr(found, name), wanted), name
        assert found.samples.shape == (6, 11, 3) and model[2].training is not False


def test_batches_of_keywords(place: torch.device) -> None:
    """As a data set for transformers gives them, and with the labels dropped."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.weight = Dropout(0.5), nn.Parameter(torch.ones(3))

        def forward(self, *, ids: Tensor, scale: Tensor) -> dict[str, Tensor]:
            return {"logits": self.drop(ids.float() * self.weight) * scale}

    data = [{"ids": torch.arange(3), "scale": torch.ones(1) * k} for k in range(1, 6)]
    model = Model()
    found = mc_predict(
        lambda batch: model(**batch),
        DataLoader(data, batch_size=2, generator=torch.Generator()),  # type: ignore[arg-type]
        30,
        modules=model,
        transform=lambda output: output["logits"],
    )
    assert found.mean.shape == (5, 3) and (found.variance[:, 1:] > 0).all()


def test_batches_are_moved_to_the_model_s_device() -> None:
    """Here one without data, which every machine has."""
    model = classifier().to("meta")
    batches = [torch.randn(2, 6), torch.randn(3, 6)]
    found = mc_predict(model, iter(batches), 5, transform=softmax, class_dim=-1)
    assert found.mean.shape == (5, 3) and found.entropy.shape == (5,)
    assert found.mean.is_meta and found.entropy.is_meta


def test_loaders_that_are_none(place: torch.device) -> None:
    model, x = classifier(), torch.randn(4, 6)
    for loader in (iter(()), DataLoader(TensorDataset(x[:0]), batch_size=2)):
        with pytest.raises(ValueError, match="x must give a batch at least, got an empty"):
            mc_predict(model, loader, 5)
    for wrong in (np.ones((3, 6)), 3, "x"):
        with pytest.raises(TypeError, match="x must be a Tensor or a dict, list or tuple"):
            mc_predict(model, wrong, 5)
    with pytest.raises(ValueError, match="inputs is a function for the batches of a loader"):
        mc_predict(model, x, 5, inputs=lambda batch: batch)
    with pytest.raises(ValueError, match="inputs is a function"):
        mc_predict(model, iter([x]), 5, inputs=3)
    with pytest.raises(ValueError, match="class_dim must not be 0 with a loader"):
        mc_predict(model, iter([x]), 5, class_dim=0)
    with pytest.raises(RuntimeError, match="output has a row for each item; it has none"):
        mc_predict(model, iter([x]), 5, transform=Tensor.sum)
    with pytest.raises(RuntimeError, match=r"one shape behind the items, got \[3\] and \[2\]"):
        turns = iter([softmax] * 5 + [lambda y: y[:, :2]] * 5)
        mc_predict(model, iter([x, x]), 5, transform=lambda y: next(turns)(y))
    with pytest.raises(TypeError, match="x must be a Tensor or a dict, list or tuple, got str"):
        mc_predict(model, iter(["x"]), 5)
    assert model.training


def test_says_once_when_all_batches_are_equal(place: torch.device) -> None:
    still = nn.Sequential(nn.Dropout(0.0))
    x = torch.rand(6, 4)
    with pytest.warns(UserWarning, match="all 7 predictions are equal") as caught:
        mc_predict(still, iter(x.split(2)), 7)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mc_predict(nn.Dropout(0.5), iter([torch.zeros(2, 30), torch.rand(2, 30)]), 7)
