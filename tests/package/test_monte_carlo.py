"""mc_dropout switches dropout layers and nothing else; mc_predict averages over their masks."""

from __future__ import annotations

import math
import warnings
from collections import UserDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fused_dropout
from fused_dropout import mc_dropout, mc_predict
from fused_dropout.nn import DropConnectLinear, DropPath, StochasticDepth


def modes_of(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_says_when_all_predictions_are_equal(place: torch.device) -> None:
    x = torch.rand(3, 4)
    model = nn.Sequential(nn.Dropout(0.0), nn.ReLU())
    for arguments in ({}, {"samples_per_pass": 3}, {"masks": "pass"}):
        with pytest.warns(UserWarning, match="all 7 predictions are equal.*types="):
            moments = mc_predict(model, x, 7, **arguments)
        assert moments.variance.max() < 1e-12
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mc_predict(model, x, 1, correction=0)
        mc_predict(nn.Dropout(0.5), torch.rand(0, 4), 7)
        mc_predict(nn.Dropout(0.5), torch.rand(20, 4), 7)


class TakesADict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drop = DropPath(0.5)

    def forward(self, inputs: dict[str, Any], scale: Tensor | None = None) -> Tensor:
        x: Tensor = self.drop(inputs["x"]) * inputs["factor"]
        x.add_(0)
        return x if scale is None else x * scale


@pytest.mark.parametrize("masks", ["sample", "pass"])
@pytest.mark.parametrize("samples_per_pass", [1, 3])
def test_dicts_keywords_and_functions(
    masks: str, samples_per_pass: int, place: torch.device
) -> None:
    model, x, scale = TakesADict(), torch.rand(6, 5) + 1, torch.rand(6, 1) + 1
    inputs = {"x": x, "factor": 2, "names": ["a", None]}
    how: dict[str, Any] = {"masks": masks, "samples_per_pass": samples_per_pass}

    def predict(**inputs: Any) -> Tensor:
        return model(inputs, scale)

    calls: list[Callable[[], fused_dropout.MCPrediction]] = [
        lambda: mc_predict(model, inputs, 30, kwargs={"scale": scale}, **how),
        lambda: mc_predict(model.forward, inputs, 30, kwargs={"scale": scale}, **how),
        lambda: mc_predict(partial(model, scale=scale), inputs, 30, **how),
        lambda: mc_predict(lambda x: model(x, scale), UserDict(inputs), 30, modules=model, **how),
        lambda: mc_predict(predict, None, 30, kwargs=inputs, modules=[model], **how),
    ]
    # The others read `scale` from outside, whole, where "pass" runs the model item by item.
    for call in calls[:2] if masks == "pass" else calls:
        torch.manual_seed(13)
        mean, variance = call()
        torch.testing.assert_close(
            variance, variance_of_dropout(mean, 4 * x * scale, 30), rtol=1e-4, atol=1e-5
        )
        assert variance.min() > 0
        assert (len(set((mean / x / scale).mean(1).mul(1e3).round().tolist())) == 1) == (
            masks == "pass"
        )
    assert model.training


def test_a_function_that_drops_by_itself(place: torch.device) -> None:
    x = torch.ones(3, 50)
    mean, variance = mc_predict(F.dropout, x, 30, samples_per_pass=7)
    torch.testing.assert_close(variance, variance_of_dropout(mean, 2 * x, 30))
    assert variance.max() > 0


@pytest.mark.parametrize("masks", ["sample", "pass"])
def test_predictions_are_made_one_at_a_time_where_vmap_refuses(
    masks: str, place: torch.device
) -> None:
    class DrawsInPlace(nn.Module):
        drop_rate = 0.5

        def forward(self, x: Tensor) -> Tensor:
            dropped = torch.empty(x.shape, device=x.device).bernoulli_(self.drop_rate)
            return x * dropped if self.training and self.drop_rate else x

    x = torch.ones(4, 6)
    with pytest.warns(UserWarning, match="one at a time.*torch.func.vmap.*inplace randomness"):
        mean, variance = mc_predict(DrawsInPlace(), x, 20, samples_per_pass=5, masks=masks)
    torch.testing.assert_close(variance, variance_of_dropout(mean, x, 20))
    assert (variance > 0).all()
    assert torch.equal(mean[0], mean[1]) == (masks == "pass")


def test_every_mode_is_put_back() -> None:
    model = nn.Sequential(*[nn.Dropout() for _ in range(5)], nn.Sequential(nn.Linear(3, 3)))
    for number, module in enumerate(model.modules()):
        module.training = number % 3 == 0
    before = modes_of(model)
    with mc_dropout(model):
        with mc_dropout(model, types=[nn.Linear, nn.BatchNorm1d]):
            assert model[5][0].training and not model[5].training
        assert not model[5][0].training
        assert model[0].training
    assert modes_of(model) == before
    with pytest.raises(KeyError), mc_dropout(model):
        raise KeyError
    assert modes_of(model) == before
    with pytest.raises(TypeError, match="must be a Tensor, got int"):
        mc_predict(model, torch.ones(2, 3), 2, transform=len)
    assert modes_of(model) == before


def test_a_shared_layer_is_switched_once() -> None:
    dropout = nn.Dropout().eval()
    model = nn.Sequential(dropout, nn.Linear(3, 3), dropout).eval()
    with mc_dropout(model):
        assert dropout.training
    assert not dropout.training


def test_batch_norm_stays_in_evaluation(place: torch.device) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6)
    model = nn.Sequential(norm, nn.Dropout(0.5)).train()
    model(torch.randn(50, 6))
    statistics = {name: value.clone() for name, value in norm.state_dict().items()}
    x = torch.randn(5, 6) + 3
    expected = norm.eval()(x)
    norm.train()
    prediction = mc_predict(model, x, 500)
    assert all(torch.equal(value, statistics[name]) for name, value in norm.state_dict().items())
    # Each is a mean of 500 values 0 or 2y: |z| < 6 fails by chance with probability 6e-8 in all.
    z = (prediction.mean - expected) / (expected.abs() / math.sqrt(500))
    assert z.abs().max() < 6


def attention() -> nn.Module:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.MultiheadAttention(6, 2, dropout=0.4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x, x, x)[0]

    return Attention()


def recurrent() -> nn.Module:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(6, 6, 2, dropout=0.5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)[0]

    return Recurrent()


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 16, batch_first=True)
    return nn.TransformerEncoder(layer, 2)


@pytest.mark.parametrize("build", [attention, recurrent, encoder])
def test_torch_s_layers_with_dropout_inside(
    build: Callable[[], nn.Module], place: torch.device
) -> None:
    """Without batch normalisation the model drops just as in training, fast paths or not."""
    torch.manual_seed(1)
    model = build()
    x = torch.randn(4, 3, 6)
    with torch.no_grad():
        torch.manual_seed(2)
        expected = torch.stack([model(x), model(x)])
        assert not torch.equal(*expected)
        model.eval()
        torch.manual_seed(2)
        with mc_dropout(model):
            outputs = torch.stack([model(x), model(x)])
    assert not torch.equal(*outputs)
    if place.type == "cuda" and build is recurrent:
        return  # cuDNN draws from a state of its own, which manual_seed does not set back
    assert torch.equal(outputs, expected)
    torch.manual_seed(2)
    torch.testing.assert_close(mc_predict(model, x, 2).mean, expected.mean(0))


def network() -> nn.Sequential:
    """All of ours and torch's, for [N, 6] to [N, 2]; every prediction differs."""
    return nn.Sequential(
        nn.Linear(6, 40),
        nn.BatchNorm1d(40),
        nn.ReLU(inplace=True),
        nn.Dropout(0.3, inplace=True),
        DropConnectLinear(40, 40),
        DropPath(0.2),
        StochasticDepth(0.2, "batch"),
        nn.AlphaDropout(0.1),
        nn.Linear(40, 2),
    )


@pytest.mark.parametrize("correction", [0, 1])
def test_moments_are_those_of_the_predictions(correction: int, place: torch.device) -> None:
    torch.manual_seed(3)
    model, x = network(), torch.randn(7, 6)
    torch.manual_seed(4)
    with mc_dropout(model), torch.no_grad():
        outputs = torch.stack([model(x) for _ in range(20)])
    torch.manual_seed(4)
    prediction = mc_predict(model, x, 20, correction=correction)
    variance, mean = torch.var_mean(outputs.double(), 0, correction=correction)
    torch.testing.assert_close(prediction.mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(prediction.variance.double(), variance, rtol=1e-5, atol=1e-6)
    assert not prediction.mean.requires_grad and not prediction.variance.requires_grad


def variance_of_dropout(mean: Tensor, kept_value: Tensor, samples: int) -> Tensor:
    """Of predictions 0 or kept_value: how many were kept follows from their mean."""
    kept = (mean / kept_value * samples).round()
    return kept * (samples - kept) / (samples * (samples - 1)) * kept_value**2


@pytest.mark.parametrize("masks", ["sample", "pass"])
@pytest.mark.parametrize("samples_per_pass", [1, 4, 1000])
def test_every_prediction_counts_once(
    masks: str, samples_per_pass: int, place: torch.device
) -> None:
    torch.manual_seed(5)
    x = torch.randn(8, 6)
    for model in (nn.Dropout(0.5), DropPath(0.5), StochasticDepth(0.5, "batch")):
        mean, variance = mc_predict(model, x, 50, masks=masks, samples_per_pass=samples_per_pass)
        kept = mean / (2 * x) * 50
        torch.testing.assert_close(kept, kept.round(), rtol=0, atol=1e-3)
        torch.testing.assert_close(variance, variance_of_dropout(mean, 2 * x, 50))
        # Kept 25 times of 50: |z| < 6 fails by chance with probability 1e-7 for 48 elements.
        assert ((kept - 25).abs() < 6 * math.sqrt(12.5)).all()
        assert ((variance > 0) & (kept > 0)).all(), "the predictions are all the same"


def test_a_large_mean_does_not_drown_the_variance(place: torch.device) -> None:
    class Shifted(nn.Dropout):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1e5

    x = torch.ones(200, dtype=torch.float32)
    for samples_per_pass in (1, 7):
        mean, variance = mc_predict(Shifted(0.5), x, 100, samples_per_pass=samples_per_pass)
        expected = variance_of_dropout(mean.double() - 1e5, 2 * x.double(), 100)
        torch.testing.assert_close(variance.double(), expected, rtol=0.05, atol=0)


@pytest.mark.parametrize("samples_per_pass", [1, 3])
def test_one_mask_per_pass_is_one_network_for_all_items(
    samples_per_pass: int, place: torch.device
) -> None:
    torch.manual_seed(6)
    model, x = network(), torch.randn(5, 6)

    def predict(batch: Tensor) -> Tensor:
        torch.manual_seed(7)
        arguments: dict[str, Any] = {"masks": "pass", "samples_per_pass": samples_per_pass}
        return torch.stack(mc_predict(model, batch, 6, **arguments))

    together = predict(x)
    alone = torch.cat([predict(item[None]) for item in x], 1)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert together[1].min() > 0


def test_who_shares_masks(place: torch.device) -> None:
    torch.manual_seed(8)
    model, x = network(), torch.randn(1, 6).expand(5, 6)
    shared = mc_predict(model, x, 10, masks="pass")
    torch.testing.assert_close(shared.mean, shared.mean[:1].expand(5, 2))
    torch.testing.assert_close(shared.variance, shared.variance[:1].expand(5, 2))
    own = mc_predict(model, x, 10)
    assert len(set(own.mean[:, 0].tolist())) == 5


def test_manual_seed_repeats_and_each_call_differs(place: torch.device) -> None:
    torch.manual_seed(9)
    model, x = network(), torch.randn(5, 6)
    for arguments in ({}, {"masks": "pass"}, {"samples_per_pass": 3}):
        torch.manual_seed(10)
        first, second = (mc_predict(model, x, 4, **arguments).mean for _ in range(2))
        torch.manual_seed(10)
        assert torch.equal(mc_predict(model, x, 4, **arguments).mean, first)
        assert not torch.equal(first, second)


def test_a_model_that_writes_to_its_input(place: torch.device) -> None:
    x = torch.ones(3, 50)
    for masks in ("sample", "pass"):
        for samples_per_pass in (1, 4):
            arguments: dict[str, Any] = {"masks": masks, "samples_per_pass": samples_per_pass}
            mean, _ = mc_predict(nn.Dropout(0.5, inplace=True), x, 40, **arguments)
            assert torch.equal(x, torch.ones(3, 50))
            assert mean.min() > 0, "dropped elements stay dropped"


def test_dtypes(place: torch.device) -> None:
    for dtype, wide in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        prediction = mc_predict(nn.Dropout(0.5), torch.ones(3, 4, dtype=dtype), 3)
        assert {moment.dtype for moment in prediction} == {wide}
    assert prediction._fields == ("mean", "variance")


def test_transform(place: torch.device) -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3))
    for masks in ("sample", "pass"):
        mean, _ = mc_predict(
            model, torch.randn(5, 6), 10, masks=masks, transform=lambda y: y.softmax(-1)
        )
        torch.testing.assert_close(mean.sum(-1), torch.ones(5))
    picked = mc_predict(
        nn.LSTM(6, 4, 2, dropout=0.5), torch.randn(2, 3, 6), 4, transform=lambda y: y[0]
    )
    assert picked.mean.shape == (2, 3, 4)


@pytest.mark.parametrize("masks", ["sample", "pass"])
@pytest.mark.parametrize("samples_per_pass", [1, 2])
def test_gradients_where_asked_for(masks: str, samples_per_pass: int, place: torch.device) -> None:
    torch.manual_seed(11)
    x = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    model = nn.Sequential(nn.Dropout(0.5), DropPath(0.5))
    mean, variance = mc_predict(
        model, x, 5, masks=masks, samples_per_pass=samples_per_pass, enable_grad=True
    )
    # Every prediction is x times a factor, so the mean and variance are x and x^2 times one.
    (d_mean,) = torch.autograd.grad(mean.sum(), x, retain_graph=True)
    (d_variance,) = torch.autograd.grad(variance.sum(), x)
    torch.testing.assert_close(d_mean, mean / x)
    torch.testing.assert_close(d_variance, 2 * variance / x)
    assert d_variance.count_nonzero() > 0


def test_a_nan_is_not_hidden(place: torch.device) -> None:
    x = torch.ones(2, 50)
    x[1, 3] = math.nan
    model = nn.Sequential(nn.Linear(50, 1), nn.Dropout(0.5))
    mean, variance = mc_predict(model, x, 20, transform=lambda y: y + 0 * x[:, 3:4])
    assert mean[0].isfinite() and variance[0].isfinite()
    assert mean[1].isnan() and variance[1].isnan()


def test_compiled_model(place: torch.device) -> None:
    torch.manual_seed(12)
    model = nn.Sequential(nn.Linear(6, 6), DropPath(0.5)).eval()
    compiled = torch.compile(model, backend="aot_eager")
    x = torch.randn(5, 6)
    expected = model(x).detach()
    compiled(x)  # in evaluation mode
    mean, variance = mc_predict(compiled, x, 50)
    torch.testing.assert_close(variance, variance_of_dropout(mean, 2 * expected, 50))
    assert (variance > 0).any()
    torch.testing.assert_close(compiled(x), expected)


@pytest.mark.parametrize("shape", [(0, 6), (5, 6)])
def test_shapes(shape: tuple[int, ...], place: torch.device) -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3))
    for masks in ("sample", "pass"):
        for moment in mc_predict(model, torch.randn(shape), 3, masks=masks):
            assert moment.shape == (shape[0], 3)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"model": nn.Linear(6, 6)}, ValueError, "nothing in this Linear is known to drop.*types="),
        ({"model": "net"}, TypeError, "model must be a Module or a function, got str"),
        ({"x": 1.0}, TypeError, "x must be a Tensor or a dict, list or tuple, got float"),
        ({"x": [1.0]}, TypeError, "x or kwargs must hold a Tensor, got x of type list"),
        ({"x": None}, TypeError, "x or kwargs must hold a Tensor, got x of type NoneType"),
        ({"x": torch.ones(2, 6).to_sparse()}, RuntimeError, "x must be a dense"),
        ({"kwargs": [1]}, TypeError, "kwargs must be a dict, got list"),
        ({"kwargs": {"a": torch.ones(2).to_sparse()}}, RuntimeError, "kwargs must be a dense"),
        (
            {"kwargs": {"a": torch.ones(3)}, "masks": "pass"},
            RuntimeError,
            r"tensors with a row per item, got \[2, 3\] rows",
        ),
        ({"modules": nn.Dropout()}, ValueError, "modules goes with a function"),
        ({"model": len, "modules": [len]}, TypeError, "modules must be a Module or a sequence"),
        ({"model": len, "modules": nn.ReLU()}, ValueError, "nothing in this ModuleList is known"),
        ({"model": len, "types": "Dropout"}, TypeError, "types must be a class or a sequence"),
        ({"samples": 1}, ValueError, "samples must be more than correction, which is 1, got 1"),
        ({"samples": 0, "correction": 0}, ValueError, "samples must be more than correction"),
        ({"samples": 2.5}, TypeError, "samples must be an int, got float"),
        ({"correction": -1}, ValueError, "correction must be in"),
        ({"samples_per_pass": 0}, ValueError, "samples_per_pass must be in"),
        ({"masks": "batch"}, ValueError, "masks must be one of 'sample', 'pass', got 'batch'"),
        ({"types": "Dropout"}, TypeError, "types must be a class or a sequence of classes"),
        ({"types": [nn.Dropout()]}, TypeError, "types must be a class or a sequence of classes"),
        ({"transform": lambda y: (y, y)}, TypeError, "output must be a Tensor, got tuple"),
        ({"transform": lambda y: y > 0}, RuntimeError, "must be floating point, got torch.bool"),
        ({"x": torch.tensor(1.0), "masks": "pass"}, RuntimeError, "without dimensions"),
        (
            {"transform": lambda y: y.sum(), "masks": "pass"},
            RuntimeError,
            r"a row for each item of x; for one item it has shape \[\]",
        ),
        (
            {"model": recurrent(), "x": torch.ones(2, 3, 6), "masks": "pass"},
            RuntimeError,
            r"failed in torch.func.vmap, which masks='pass'",
        ),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], text: str) -> None:
    good: dict[str, Any] = {"model": nn.Dropout(0.5), "x": torch.ones(2, 6), "samples": 3}
    with pytest.raises(error, match=text):
        mc_predict(**{**good, **change})


@pytest.mark.parametrize("types", [(), (nn.Linear,), [nn.Linear], nn.Linear])
def test_types_takes_classes(types: type[nn.Module] | Sequence[type[nn.Module]]) -> None:
    with mc_dropout(nn.Dropout(), types=types):
        pass
