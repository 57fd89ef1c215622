"""Which modules are known to drop: by their class, or from their source."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fused_dropout
from fused_dropout import mc_dropout, mc_predict
from fused_dropout.nn import DropConnectLinear, DropPath, DropPathAdd, StochasticDepth


def test_every_layer_of_this_package_is_known_to_drop() -> None:
    layers = [getattr(fused_dropout.nn, name) for name in fused_dropout.nn.__all__]
    for layer in layers:
        if issubclass(layer, nn.Module):
            marked = getattr(layer, "drops_in_training", False)
            assert marked or issubclass(layer, nn.modules.dropout._DropoutNd), layer.__name__


class FromSource(nn.Module):
    """What its mode decides about can only be read in ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.drop_rate = 0.5


class Functional(FromSource):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.norm(x), 0.5, self.training)


class ByKeyword(FromSource):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))

    def head(self, x: Tensor) -> Tensor:
        return F.dropout(x, p=self.drop_rate, training=self.training)


class RateOfAChild(FromSource):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x).unsqueeze(1)
        p = self.drop.p if self.training else 0.0
        return F.scaled_dot_product_attention(x, x, x, dropout_p=p).squeeze(1)


class RateElsewhere(FromSource):
    def forward(self, x: Tensor) -> Tensor:
        rate = 0.5
        x = self.norm(x).unsqueeze(1)
        return F.scaled_dot_product_attention(
            x, x, x, dropout_p=0.0 if not self.training else rate
        ).squeeze(1)


class Branches(FromSource):
    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.drop_rate > 0:
            x = x * (torch.rand_like(x) > self.drop_rate)
        if not self.training:
            dropped = x
        else:
            dropped = F.dropout(x, 0.5)
            dropped = dropped + 0
        return self.norm(dropped)


class Inherited(Functional):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Property(FromSource):
    @property
    def rate(self) -> float:
        return self.drop_rate if self.training else 0.0

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.norm(x), self.rate)


class RecomputesActivations(FromSource):
    checkpointing = True

    def forward(self, x: Tensor) -> Tensor:
        if self.checkpointing and self.training:
            x = x.clone()
        return F.dropout(self.norm(x), 0.5, training=self.training)


class RandomErasingDropout(nn.Module):
    p = 0.5

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (torch.rand_like(x) > self.p)


class OwnStatistics(FromSource):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(self.drop(x), torch.ones(6), torch.ones(6), training=self.training)


class AlsoCounts(FromSource):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = self.drop(x)
            self.calls = 1
        return x


class OtherOutput(FromSource):
    def forward(self, x: Tensor) -> Any:
        x = self.drop(x)
        return (x, self.norm(x)) if self.training else x

    def unused(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.training)


class Both(FromSource):
    def forward(self, x: Tensor) -> Any:
        x = F.dropout(x, 0.5, self.training)
        if self.training:
            return x, self.norm(x)
        return x


class FromPeer(nn.Dropout2d):
    pass


def class_of(package: str, name: str) -> type[nn.Module]:
    return type(name, (nn.Module,), {"__module__": f"{package}.layers"})


DROPPING = [
    nn.Dropout(),
    nn.Dropout1d(),
    nn.Dropout2d(),
    nn.Dropout3d(),
    nn.AlphaDropout(),
    nn.FeatureAlphaDropout(),
    FromPeer(),
    DropConnectLinear(6, 6),
    StochasticDepth(0.5, "row"),
    DropPath(0.5),
    DropPathAdd(0.5),
    nn.LSTM(6, 6, 2, dropout=0.5),
    nn.MultiheadAttention(6, 2, dropout=0.5),
    nn.TransformerEncoderLayer(6, 2, 8),
    type("Marked", (nn.Module,), {"drops_in_training": True})(),
    class_of("timm", "DropPath")(),
    class_of("torchvision", "StochasticDepth")(),
    type("Derived", (class_of("torchvision", "DropBlock2d"),), {})(),
    Functional(),
    ByKeyword(),
    RateOfAChild(),
    RateElsewhere(),
    Branches(),
    Inherited(),
    Property(),
    RecomputesActivations(),
    RandomErasingDropout(),
]
OTHERS = [
    nn.BatchNorm1d(6),
    nn.Linear(6, 6),
    nn.LSTM(6, 6, 2),
    nn.MultiheadAttention(6, 2),
    OwnStatistics(),
    AlsoCounts(),
    OtherOutput(),
    type("Declared", (Functional,), {"drops_in_training": False})(),
    class_of("elsewhere", "DropPath")(),
    type("Marked", (nn.Module,), {"drops_in_training": False})(),
]


def modes_of(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("layer", DROPPING, ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("training", [False, True])
def test_switches_dropout_layers(layer: nn.Module, training: bool) -> None:
    layer.train(training)
    before = modes_of(layer)
    with mc_dropout(layer) as model:
        assert model is layer
        assert layer.training
    assert modes_of(layer) == before


@pytest.mark.parametrize("layer", OTHERS, ids=lambda layer: type(layer).__name__)
@pytest.mark.parametrize("training", [False, True])
def test_switches_nothing_else(layer: nn.Module, training: bool) -> None:
    model = nn.Sequential(nn.Dropout(), layer).train(training)
    with mc_dropout(model):
        assert not model.training
        assert not layer.training
    with mc_dropout(model, types=type(layer)):
        assert layer.training
        children = [child for child in layer.children() if not isinstance(child, nn.Dropout)]
        assert not any(child.training for child in children)
    assert all(mode == training for mode in modes_of(model))


@pytest.mark.parametrize("layer", DROPPING[-9:], ids=lambda layer: type(layer).__name__)
def test_layers_known_from_their_source_drop(layer: nn.Module, place: torch.device) -> None:
    layer = copy.deepcopy(layer).to(place).eval()
    x = torch.randn(40, 6)
    expected = layer(x)
    assert mc_predict(layer, x, 8).variance.max() > 0
    assert torch.equal(layer(x), expected), "batch normalisation has not learned"


def test_a_mode_that_decides_about_more_than_dropout() -> None:
    model = nn.Sequential(Both(), nn.Dropout())
    words = "mode of Both decides about dropout and about something else"
    with pytest.warns(UserWarning, match=words), mc_dropout(model):
        assert not model[0].training
    with warnings.catch_warnings(), mc_dropout(model, types=Both):
        warnings.simplefilter("error")
        assert model[0].training


# ---- attention as transformers has it ------------------------------------------------------------


def eager_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0
) -> Tensor:
    """A function outside of the class, which goes by the module's mode or by what it is given."""
    weights = (query @ key.transpose(-1, -2)).softmax(-1)
    return F.dropout(weights, p=dropout, training=module.training) @ value


def sdpa_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0
) -> Tensor:
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)


ALL_ATTENTION_FUNCTIONS = {"eager": eager_attention, "sdpa": sdpa_attention}


class HuggingFaceAttention(nn.Module):
    """The rate is a float, as in Llama, or the p of a Dropout that is never called, as in BERT."""

    def __init__(self, how: str, *, holds_a_layer: bool) -> None:
        super().__init__()
        self.how = how
        self.dropout = nn.Dropout(0.5)
        self.attention_dropout = 0.5
        self.holds_a_layer = holds_a_layer

    def forward(self, x: Tensor) -> Tensor:
        attend = ALL_ATTENTION_FUNCTIONS[self.how]
        if self.holds_a_layer:
            return attend(self, x, x, x, dropout=0.0 if not self.training else self.dropout.p)
        return attend(self, x, x, x, dropout=0.0 if not self.training else self.attention_dropout)


@pytest.mark.parametrize("how", ALL_ATTENTION_FUNCTIONS)
@pytest.mark.parametrize("holds_a_layer", [True, False])
def test_attention_functions_outside_of_the_class(how: str, holds_a_layer: bool) -> None:
    model = nn.Sequential(HuggingFaceAttention(how, holds_a_layer=holds_a_layer)).eval()
    x = torch.randn(2, 4, 6)
    variance = mc_predict(model, x, 5).variance
    assert (variance > 0).all() and not model[0].training


@pytest.mark.parametrize("how", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["Bert", "GPT2"])
def test_models_of_transformers(name: str, how: str) -> None:
    """Small ones, in which attention alone drops; called with keywords, as from a tokenizer."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 50, "attn_implementation": how}
    if name == "Bert":
        sizes |= {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        sizes |= {"intermediate_size": 32, "hidden_dropout_prob": 0.0}
        sizes |= {"attention_probs_dropout_prob": 0.5}
    else:
        sizes |= {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "attn_pdrop": 0.5}
        sizes |= {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": 2}
    config = getattr(transformers, f"{name}Config")(**sizes)
    model = getattr(transformers, f"{name}Model")(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    batch = {"input_ids": torch.randint(50, (3, 7)), "attention_mask": torch.ones(3, 7).long()}
    first = model(**batch).last_hidden_state
    found = mc_predict(model, None, 5, kwargs=batch, transform=lambda it: it.last_hidden_state)
    assert found.mean.shape == first.shape
    assert found.variance.mean() > 1e-3, "attention has not dropped"
    assert torch.equal(model(**batch).last_hidden_state, first)
