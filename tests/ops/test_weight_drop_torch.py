"""nn.WeightDrop beside other parts of torch (checkpoints, compile, export) and of this package."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.weight_drop import (
    SEED,
    Block,
    Conv1D,
    assert_same,
    input_of,
    output_of,
    sequences,
    with_gradients,
    wrapped,
)
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fused_dropout
from fused_dropout.nn import WeightDrop

pytestmark = pytest.mark.usefixtures("one_thread")


class First(nn.Module):
    def forward(self, outputs: tuple[Tensor, ...]) -> Tensor:
        return outputs[0]


def language_model() -> nn.Sequential:
    torch.manual_seed(1)
    lstm = WeightDrop(nn.LSTM(4, 6), "weight_hh_*", 0.5)
    return nn.Sequential(nn.Linear(4, 4), lstm, First(), WeightDrop(nn.Linear(6, 3), "weight", 0.3))


class Convolved(nn.Module):
    """All but an LSTM, which torch.compile does not enter."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = WeightDrop(nn.Conv1d(4, 8, 3), "weight", 0.5, "row")
        names = ["in_proj_weight", "out_proj.weight"]
        self.attention = WeightDrop(nn.MultiheadAttention(8, 2, batch_first=True), names, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).transpose(1, 2)
        return self.attention(h, h, h, need_weights=False)[0]


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("model", [language_model, lambda: wrapped("Block")])
def test_checkpoints_draw_the_same_masks(model: Any, reentrant: bool) -> None:
    module, x = model(), sequences().requires_grad_()
    expected = with_gradients(module, x)
    module.zero_grad()
    torch.manual_seed(SEED)
    output = checkpoint(module, x, use_reentrant=reentrant)
    (output * torch.arange(output.numel()).view(output.shape).cos()).sum().backward()
    found = [output, *(w.grad for w in module.parameters())]
    for ours, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_inside_sees_the_weights_of_its_forward(reentrant: bool) -> None:
    """Backward runs a part of the module again, long after its forward is over."""

    class Checkpointed(Block):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = checkpoint(super().forward, x, use_reentrant=reentrant)
            return result

    torch.manual_seed(1)
    module = WeightDrop(Checkpointed(), "*.weight", 0.5)
    x = sequences().requires_grad_()
    assert_same(with_gradients(module, x), with_gradients(wrapped("Block"), x))


def test_functional_call_and_vmap() -> None:
    module, x = wrapped("LSTM"), input_of("LSTM")
    doubled = {name: 2 * weight.detach() for name, weight in module.named_parameters()}
    torch.manual_seed(SEED)
    output = torch.func.functional_call(module, doubled, (x,))[0]
    other = wrapped("LSTM")
    other.load_state_dict(doubled)
    assert torch.equal(output, output_of(other, x))
    linear: Any = WeightDrop(nn.Linear(4, 6), "weight", 0.5)
    stacked = {name: torch.stack([w, w]) for name, w in linear.named_parameters()}

    def call(weights: Any, x: Tensor) -> Any:
        return torch.func.functional_call(linear, weights, (x,))

    for randomness, alike in (("same", True), ("different", False)):
        several = torch.func.vmap(call, in_dims=(0, None), randomness=randomness)(stacked, x)
        assert torch.equal(several[0], several[1]) == alike


@pytest.mark.parametrize("build", [language_model, Convolved])
def test_compiled(build: Any) -> None:
    """An LSTM breaks the graph, as a bare one does; nothing else does."""
    torch.compiler.reset()
    model = build()
    x = sequences() if build is language_model else torch.randn(2, 4, 7)
    expected = with_gradients(model, x)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=build is Convolved)
    for ours, wanted in zip(with_gradients(compiled, x), expected, strict=True):
        torch.testing.assert_close(ours, wanted)
    assert not torch.equal(compiled(x), compiled(x))
    assert not any("twin" in name for name, _ in model.named_parameters())
    model.eval()
    assert torch.equal(compiled(x), model(x))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_exported(training: bool, strict: bool) -> None:
    model = Convolved() if strict else language_model()
    x = torch.randn(2, 4, 7) if strict else sequences()
    model.train(training)
    exported = torch.export.export(model, (x,), strict=strict)
    assert sorted(exported.state_dict) == sorted(model.state_dict())
    assert torch.equal(output_of(exported.module(), x), output_of(model, x))


def test_traced_by_fx() -> None:
    model, x = language_model(), sequences()
    traced = torch.fx.symbolic_trace(model)  # layers of torch.nn are single nodes
    assert torch.equal(output_of(traced, x), output_of(model, x))
    own = torch.fx.symbolic_trace(WeightDrop(Conv1D(), "weight", 0.5))
    assert "mask_weight" in [node.name for node in own.graph.nodes]
    x = torch.ones(3, 4)
    assert not torch.equal(own(x), own(x))


def test_autocast() -> None:
    model = nn.Sequential(WeightDrop(nn.GRU(4, 6), "weight_hh_*", 0.5), First(),
                          WeightDrop(nn.Linear(6, 3), "weight", 0.3))  # fmt: skip
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(sequences())
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert model[0].weight_hh_l0.grad.dtype == torch.float32


def test_monte_carlo_check_and_max_norm_know_it() -> None:
    model, x = language_model().eval(), sequences()
    _, variance = fused_dropout.mc_predict(model, x, 20)
    assert (variance > 0).all() and not model.training
    norm = WeightDrop(nn.BatchNorm1d(4), "weight", 0.5)
    with pytest.warns(UserWarning, match="mode of BatchNorm1d decides"):
        fused_dropout.mc_predict(nn.Sequential(nn.Dropout(), norm).eval(), torch.ones(3, 4), 3)
    assert fused_dropout.check(model.train()) == []
    (finding,) = fused_dropout.check(nn.Sequential(WeightDrop(nn.Linear(3, 3), "weight", 0.9)))
    assert finding.mistake == "keep-rate-for-p" and "weight_p=0.9" in finding.why
    before = [weight.clone() for weight in model.parameters()]
    fused_dropout.max_norm_(model, 1e9)
    assert_same([weight.detach() for weight in model.parameters()], before)
    assert fused_dropout.to_dropconnect(model)[3] is model[3], "it would drop twice"
