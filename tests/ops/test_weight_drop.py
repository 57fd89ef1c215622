"""nn.WeightDrop: the masks of any module's parameters, and that nothing else of it changes."""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from support.devices import threads
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import fused_dropout
from fused_dropout import reference
from fused_dropout.nn import WeightDrop
from fused_dropout.schedules import LinearSchedule

SEED = 5


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """For these sizes threads cost more than they save."""
    with threads(1):
        yield


class Conv1D(nn.Module):
    """GPT-2's linear layer in Hugging Face's form: the weight is [in, out]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 6))
        self.bias = nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class Block(nn.Module):
    """Reads the weight of one inner layer by itself, calls the other, and remembers a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 4)
        self.calls, self.hidden = 0, torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        h = torch.tanh(nn.functional.linear(x, self.first.weight, self.first.bias))
        self.hidden = h.detach()
        result: Tensor = self.second(h)
        return result


def sequences() -> Tensor:
    return torch.randn(5, 3, 4)


# A module, the names, the input.
CASES: dict[str, tuple[Callable[[], nn.Module], str | list[str], Callable[[], Tensor]]] = {
    "LSTM": (lambda: nn.LSTM(4, 6, 2, bidirectional=True), "weight_hh_*", sequences),
    "LSTM, projected": (lambda: nn.LSTM(4, 6, proj_size=3), ["weight_h?_*"], sequences),
    "GRU": (lambda: nn.GRU(4, 6), ["weight_ih_l0", "weight_hh_l0"], sequences),
    "RNN": (lambda: nn.RNN(4, 6, batch_first=True), "weight_hh_l0", sequences),
    "LSTMCell": (lambda: nn.LSTMCell(4, 6), "weight_?h", lambda: torch.randn(3, 4)),
    "Linear": (lambda: nn.Linear(4, 6), ["weight", "bias"], sequences),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3), "weight", lambda: torch.randn(2, 4, 9)),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, groups=2), "weight", lambda: torch.randn(2, 4, 9, 9)),
    "Conv3d": (lambda: nn.Conv3d(2, 3, 2), "weight", lambda: torch.randn(2, 2, 4, 4, 4)),
    "MultiheadAttention": (
        lambda: nn.MultiheadAttention(4, 2), ["in_proj_weight", "out_proj.weight"], sequences,
    ),
    "TransformerEncoderLayer": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True),
        ["self_attn.*weight", "linear?.weight"], sequences,
    ),
    "Conv1D of GPT-2": (Conv1D, "weight", sequences),
    "Block": (Block, "*.weight", sequences),
    "Embedding": (lambda: nn.Embedding(9, 4), "weight", lambda: torch.randint(9, (3, 5))),
}  # fmt: skip
each_case = pytest.mark.parametrize("case", CASES)
MODES = ("connection", "row", "column")


def made(case: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(1)
    return CASES[case][0]().to(dtype)


def wrapped(
    case: str, p: float = 0.5, mode: str = "connection", dtype: torch.dtype = torch.float32
) -> Any:
    return WeightDrop(made(case, dtype), CASES[case][1], p, mode)


def input_of(case: str) -> Tensor:
    torch.manual_seed(2)
    return CASES[case][2]()


def output_of(module: nn.Module, x: Tensor, seed: int = SEED) -> Tensor:
    """The first tensor that the module returns, after torch.manual_seed."""
    torch.manual_seed(seed)
    inputs = (x, x, x) if isinstance(module, nn.MultiheadAttention) else (x,)
    result = module(*inputs)
    while not isinstance(result, Tensor):
        result = result[0]
    return result


def with_gradients(module: nn.Module, x: Tensor) -> list[Tensor]:
    module.zero_grad()
    output = output_of(module, x)
    (output * torch.arange(output.numel()).view(output.shape).cos()).sum().backward()
    return [output.detach(), *(w.grad for w in module.parameters() if w.grad is not None)]


def by_hand(case: str, rates: dict[str, float], mode: str, x: Tensor) -> list[Tensor]:
    """Output and gradients of the bare module with weights that the reference has masked."""
    bare = made(case, torch.float64)
    torch.manual_seed(SEED)
    weights = dict(bare.named_parameters())
    for name, p in rates.items():
        # On the CPU a random state is what torch.randint draws.
        seed, offset = torch.randint(-(2**63), 2**63 - 1, (2,)).tolist()
        weights[name] = reference.weight_drop(weights[name], p, mode, seed=seed, offset=offset)
    masked = made(case, torch.float64)
    masked.load_state_dict({name: weight.detach() for name, weight in weights.items()})
    output, *gradients = with_gradients(masked, x)
    own = torch.autograd.grad(list(weights.values()), list(bare.parameters()), gradients)
    return [output, *own]


def assert_same(ours: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    assert len(ours) == len(others)
    assert all(torch.equal(a, b) for a, b in zip(ours, others, strict=True))


# ---- what it computes ----------------------------------------------------------------------------


@each_case
@pytest.mark.parametrize("mode", MODES)
def test_training_is_the_module_on_masked_weights(case: str, mode: str) -> None:
    names = CASES[case][1]
    x = input_of(case)
    x = x.double() if x.is_floating_point() else x
    if mode == "column" and case == "Linear":
        names = "weight"
    p = [0.5, 0.3][: len(names)] if isinstance(names, list) else 0.5
    module: Any = WeightDrop(made(case, torch.float64), names, p, mode)
    expected = by_hand(case, module.weight_drop, mode, x)
    for ours, wanted in zip(with_gradients(module, x), expected, strict=True):
        torch.testing.assert_close(ours, wanted)
    assert not torch.equal(output_of(module, x, SEED + 1), expected[0])


@each_case
def test_evaluation_is_the_bare_module_bit_for_bit(case: str) -> None:
    module, bare, x = wrapped(case).eval(), made(case).eval(), input_of(case)
    before = torch.get_rng_state()
    torch.manual_seed(SEED)
    with torch.no_grad():  # TransformerEncoderLayer takes its fast path
        assert torch.equal(output_of(module, x), output_of(bare, x))
    assert_same(with_gradients(module, x), with_gradients(bare, x))
    torch.set_rng_state(before)


def test_one_draw_in_each_call_and_none_in_evaluation() -> None:
    module, x = wrapped("LSTM"), input_of("LSTM")
    torch.manual_seed(SEED)
    torch.randint(-(2**63), 2**63 - 1, (4 * 2,))  # a seed and an offset for each of 4 weights
    expected = torch.get_rng_state()
    output_of(module, x)
    assert torch.equal(torch.get_rng_state(), expected)
    torch.manual_seed(SEED)
    before = torch.get_rng_state()
    output_of(module.eval(), x)
    assert torch.equal(torch.get_rng_state(), before)


def test_all_time_steps_have_the_same_masks() -> None:
    """A recurrence without input: every step multiplies by one matrix."""
    rnn: Any = WeightDrop(nn.RNN(1, 8, nonlinearity="relu", bias=False), "weight_hh_l0", 0.5)
    with torch.no_grad():
        rnn.weight_ih_l0.zero_()
        rnn.weight_hh_l0.fill_(1.0)
    outputs, _ = rnn(torch.zeros(3, 1, 1), torch.eye(8)[None, :1])
    first = outputs[0, 0]  # one column of the masked matrix
    assert torch.equal((first > 0).float(), first / 2) and 0 < first.count_nonzero() < 8
    torch.manual_seed(SEED)
    a, _ = rnn(torch.zeros(6, 1, 1), torch.ones(1, 1, 8))
    torch.manual_seed(SEED)
    b, h = rnn(torch.zeros(3, 1, 1), torch.ones(1, 1, 8))
    torch.manual_seed(SEED)
    c, _ = rnn(torch.zeros(3, 1, 1), h)
    torch.testing.assert_close(a, torch.cat((b, c)))


def test_the_rate_is_the_rate() -> None:
    """Of 200 x 400 x 30 masks; |z| < 6 fails by chance with probability 2e-9."""
    layer: Any = WeightDrop(nn.Linear(400, 200, bias=False), "weight", 0.3)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    q = reference.keep_rate(0.3)
    drawn = torch.cat([layer(torch.eye(400)) for _ in range(30)])
    kept = (drawn != 0).double()
    torch.testing.assert_close(drawn[drawn != 0].unique(), torch.tensor([1 / q]))
    assert abs(kept.mean() - q) < 6 * (q * (1 - q) / kept.numel()) ** 0.5


@pytest.mark.parametrize(("mode", "dim"), [("row", 1), ("column", 0)])
def test_rows_and_columns_go_together(mode: str, dim: int) -> None:
    layer: Any = WeightDrop(nn.Linear(30, 20, bias=False), "weight", 0.5, mode)
    seen = layer(torch.eye(30)).t() == 0  # [20, 30]: what is dropped of the weight
    assert torch.equal(seen.all(dim), seen.any(dim)) and 0 < seen.all(dim).sum() < 20


def test_rates_can_be_changed_and_scheduled() -> None:
    module: Any = WeightDrop(nn.GRU(4, 6), ["weight_ih_*", "weight_hh_*"], [0.5, 0.3])
    assert module.weight_drop == {"weight_ih_l0": 0.5, "weight_hh_l0": 0.3}
    assert module.weight_p is None
    module.weight_p = 0.2
    assert module.weight_drop == {"weight_ih_l0": 0.2, "weight_hh_l0": 0.2}
    with pytest.raises(ValueError, match="weight_p, the drop probability"):
        module.weight_p = 1.5
    schedule = LinearSchedule(nn.Sequential(module), total_steps=2)
    assert module.weight_p == 0
    schedule.step()
    schedule.step()
    assert module.weight_drop == {"weight_ih_l0": 0.2, "weight_hh_l0": 0.2}
    x = sequences()
    module.weight_drop = {"weight_hh_l0": 0.0, "weight_ih_l0": 0.0}
    assert torch.equal(output_of(module, x), output_of(module.eval(), x))


# ---- what stays as it is -------------------------------------------------------------------------


@each_case
def test_parameters_keep_their_names_and_objects(case: str) -> None:
    bare = made(case)
    before, keys = dict(bare.named_parameters()), list(bare.state_dict())
    module: Any = WeightDrop(bare, CASES[case][1], 0.5)
    assert module is bare and isinstance(module, WeightDrop)
    assert isinstance(module, type(made(case)))
    assert type(module).__name__ == type(made(case)).__name__
    output_of(module, input_of(case)).sum().backward()
    after = dict(module.named_parameters())
    assert list(after) == list(before) and all(after[name] is before[name] for name in before)
    assert list(module.state_dict()) == keys
    other = made(case)
    other.load_state_dict(module.state_dict())
    module.load_state_dict(other.state_dict())


def by_torch_save(module: Any) -> Any:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def by_replica(module: Any) -> Any:
    """As torch.nn.parallel.replicate makes them, whose tensors are on GPUs."""
    replicas = {inner: inner._replicate_for_data_parallel() for inner in module.modules()}
    for inner, replica in replicas.items():
        for name, child in inner._modules.items():
            setattr(replica, name, replicas[child])
        for name, weight in inner._parameters.items():
            setattr(replica, name, weight if weight is None else weight * 1.0)
    return replicas[module]


COPIES: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "pickle, protocol 0": lambda module: pickle.loads(pickle.dumps(module, 0)),
    "torch.save": by_torch_save,
    "replica": by_replica,
}


@each_case
@pytest.mark.parametrize("how", COPIES)
def test_copies_after_a_forward_draw_the_same(case: str, how: str) -> None:
    module, x = wrapped(case), input_of(case)
    output_of(module, x).sum().backward()
    other = COPIES[how](module)
    assert type(other) is type(module) and repr(other) == repr(module)
    assert torch.equal(output_of(other, x), output_of(module, x))
    assert torch.equal(output_of(other.eval(), x), output_of(module.eval(), x))
    if how not in ("replica", "copy"):
        with torch.no_grad():
            for weight in other.parameters():
                weight.add_(1.0)
        assert not torch.equal(output_of(other, x), output_of(module, x))


def test_a_replica_gives_gradients_to_the_module() -> None:
    module, x = wrapped("LSTM"), input_of("LSTM")
    expected = with_gradients(module, x)
    module.zero_grad()
    replica = by_replica(module)
    output = output_of(replica, x)
    (output * torch.arange(output.numel()).view(output.shape).cos()).sum().backward()
    assert_same([output.detach(), *(w.grad for w in module.parameters())], expected)


@each_case
def test_remove_makes_it_bare(case: str) -> None:
    module, x = wrapped(case), input_of(case)
    output_of(module, x)
    assert WeightDrop.remove(module) is module
    bare = made(case)
    assert type(module) is type(bare) and repr(module) == repr(bare)
    assert {*vars(module)} == {*vars(bare)}
    assert torch.equal(output_of(module, x), output_of(bare, x))
    with pytest.raises(TypeError, match="module must be a WeightDrop, got"):
        WeightDrop.remove(module)
    WeightDrop(module, CASES[case][1])  # and back


def test_it_survives_what_models_go_through() -> None:
    """to(), assign, requires_grad_, flatten_parameters: the flat weights are up to date."""
    module, x = wrapped("LSTM"), input_of("LSTM")
    module.double()
    module.flatten_parameters()
    assert output_of(module, x.double()).dtype == torch.float64
    module.float()
    other = wrapped("LSTM")
    other.load_state_dict({k: 2 * v for k, v in module.state_dict().items()}, assign=True)
    again = wrapped("LSTM")
    again.load_state_dict(other.state_dict())
    assert torch.equal(output_of(other, x), output_of(again, x))
    assert all(a is b for a, b in zip(other._flat_weights, other.parameters(), strict=True))
    again.requires_grad_(False)
    assert not output_of(again, x).requires_grad


def test_training_does_not_touch_the_flat_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU to flatten weights anew moves the parameters in memory, and the masked ones too."""
    module, x = wrapped("LSTM"), input_of("LSTM")
    module.load_state_dict({k: 2 * v for k, v in module.state_dict().items()}, assign=True)
    module(x)  # as a bare LSTM flattens assigned weights in its next forward
    flattened = []
    monkeypatch.setattr(nn.RNNBase, "flatten_parameters", lambda rnn: flattened.append(rnn))
    for _ in range(2):
        module(x)[0].sum().backward()
    assert flattened == []


class FlattensItself(nn.GRU):
    def forward(self, x: Tensor) -> Any:  # type: ignore[override]
        self._init_flat_weights()
        return super().forward(x)


def test_a_layer_that_lists_its_weights_in_forward() -> None:
    module: Any = WeightDrop(FlattensItself(4, 6), "weight_hh_l0", 0.5)
    x = sequences()
    assert not torch.equal(output_of(module, x, 1), output_of(module, x, 2))
    assert all(a is b for a, b in zip(module._flat_weights, module.parameters(), strict=True))


class CallsItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1000))

    def forward(self, depth: int) -> Tensor:
        result: Tensor = self.weight * self(depth - 1) if depth else self.weight
        return result


def test_a_module_that_calls_itself_drops_once() -> None:
    module: Any = WeightDrop(CallsItself(), "weight", 0.5)
    assert 400 < module(2).count_nonzero() < 600
    assert {0.0, 8.0} == {*module(2).tolist()}


@pytest.mark.parametrize("case", ["LSTM", "Block", "Linear"])
def test_an_exception_leaves_the_module_as_it_was(case: str) -> None:
    module, x = wrapped(case), input_of(case)
    before = {name: id(weight) for name, weight in module.named_parameters()}
    expected = output_of(module, x)
    with pytest.raises((RuntimeError, ValueError)):
        module(torch.randn(5, 3, 7))
    assert {name: id(weight) for name, weight in module.named_parameters()} == before
    assert torch.equal(output_of(module, x), expected)


def test_what_forward_sets_is_set() -> None:
    module = wrapped("Block")
    for calls in (1, 2, 3):
        module(sequences())
        assert module.calls == calls and module.hidden.shape == (5, 3, 5)


class Odd(nn.Module):
    """Changes itself in forward in every way."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.register_buffer("seen", torch.zeros(()))
        self.old = 1

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "old"):
            del self.old
            self.late = nn.Linear(4, 4)
            self.scale = nn.Parameter(torch.ones(()))
        self.seen = self.seen + 1
        return self.late(self.layer(x)) * self.scale


def test_a_module_that_changes_itself() -> None:
    module: Any = WeightDrop(Odd(), "layer.weight", 0.5)
    weight = module.layer.weight
    for calls in (1, 2):
        module(torch.ones(2, 4))
        assert module.seen == calls and not hasattr(module, "old")
    assert {"scale", "late.weight", "layer.weight"} < {*dict(module.named_parameters())}
    assert module.layer.weight is weight and type(module.layer) is nn.Linear


def test_two_threads() -> None:
    """Each runs on its own masks; nothing of the module changes on the way."""
    module, x = wrapped("LSTM"), torch.randn(9, 3, 4)
    weights = {name: id(weight) for name, weight in module.named_parameters()}
    outputs: list[Tensor] = []
    seen = []

    def run() -> None:
        for _ in range(8):
            outputs.append(module(x)[0].detach())
            seen.append({name: id(weight) for name, weight in module.named_parameters()})

    running = [threading.Thread(target=run) for _ in range(3)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert len(outputs) == 24 and all(names == weights for names in seen)
    assert torch.equal(output_of(module.eval(), x), output_of(made("LSTM").eval(), x))


# ---- beside other parts of torch -----------------------------------------------------------------


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    layer: Any = WeightDrop(nn.Linear(40, 30, dtype=dtype), "weight", 0.5)
    output = layer(torch.randn(7, 40, dtype=dtype))
    output.sum().backward()
    assert output.dtype == dtype and 0.3 < (layer.weight.grad == 0).double().mean() < 0.7


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


# ---- mistakes ------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Embedding(5, 4), nn.Linear(4, 5)
        self.decoder.weight = self.encoder.weight


class Integers(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)


def compiled_linear() -> Any:
    linear = nn.Linear(2, 3)
    linear.forward = linear.forward  # type: ignore[method-assign]  # as accelerate's hooks do
    return linear


MISTAKES: dict[str, tuple[Callable[[], Any], tuple[Any, ...], type[Exception], str]] = {
    "no module": (lambda: 3, ("weight",), TypeError, "module must be a torch.nn.Module, got int"),
    "unknown": (lambda: nn.GRU(2, 3), ("w_hh",), ValueError,
                "parameters of the GRU, got 'w_hh'; it has weight_ih_l0, weight_hh_l0, bias_ih_l0"),
    "nothing": (nn.ReLU, ("weight",), ValueError, "it has none"),
    "one unknown": (lambda: nn.Linear(2, 3), (["weight", "x*"],), ValueError, "got 'x\\*'"),
    "no names": (lambda: nn.Linear(2, 3), ([],), ValueError, "names must name at least one"),
    "names": (lambda: nn.Linear(2, 3), (3,), TypeError, "names must be a str.*got 3"),
    "twice": (lambda: nn.Linear(2, 3), (["weight", "w*"],), ValueError, "got weight twice"),
    "rate": (lambda: nn.Linear(2, 3), ("weight", 1.5), ValueError, "but got 1.5"),
    "one rate": (lambda: nn.Linear(2, 3), (["weight", "bias"], [0.5, -1]), ValueError,
                 r"p\[1\], the drop probability.*got -1"),
    "rates": (lambda: nn.Linear(2, 3), (["weight", "bias"], [0.5]), ValueError,
              "one for each of 2 names, got 1"),
    "rate's type": (lambda: nn.Linear(2, 3), ("weight", "0.5"), TypeError, "p must be a float"),
    "mode": (lambda: nn.Linear(2, 3), ("weight", 0.5, "unit"), ValueError, "mode must be one of"),
    "columns": (lambda: nn.Linear(2, 3), ("bias", 0.5, "column"), ValueError,
                r"bias must have at least two dimensions.*got \[3\]"),
    "scalar": (lambda: Integers(torch.tensor(1.0)), ("weight",), ValueError, "one dimension"),
    "again": (lambda: WeightDrop(nn.Linear(2, 3), "weight"), ("bias",), ValueError,
              "already: this Linear drops weight"),
    "inside": (lambda: nn.Sequential(WeightDrop(nn.Linear(2, 3), "weight")), ("0.*",), ValueError,
               "0.weight is masked already, by the Linear 0"),
    "tied": (Tied, ("decoder.weight",), ValueError, "decoder.weight is tied: it is encoder.weight"),
    "tied module": (lambda: nn.Sequential(*[nn.Linear(2, 2)] * 2), ("0.weight",), ValueError,
                    "0.weight is tied: it is 1.weight too"),
    "parametrized": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)), ("weight",),
                     ValueError, "which a parametrization computes"),
    "original": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)),
                 ("parametrizations.weight.original1",), ValueError, "a weight is computed from"),
    "old norm": (lambda: nn.utils.spectral_norm(nn.Linear(2, 3)), ("weight_orig",), ValueError,
                 "a weight is computed from"),
    "pruned": (lambda: prune.l1_unstructured(nn.Linear(2, 3), "weight", 2),
               ("weight_orig",), ValueError, "a weight is computed from"),
    "lazy": (lambda: nn.LazyLinear(3), ("weight",), ValueError, "not initialised yet"),
    "integers": (lambda: Integers(torch.ones(2, 3).char()), ("weight",), RuntimeError, "int8"),
    "sparse": (lambda: Integers(torch.ones(2, 3).to_sparse()), ("weight",), RuntimeError, "dense"),
    "quantised": (lambda: Integers(torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0,
                                                             torch.qint8)),
                  ("weight",), NotImplementedError, "qint8"),
    "scripted": (lambda: torch.jit.script(nn.Linear(2, 3)), ("weight",), ValueError, "torch.jit"),
    "traced": (lambda: torch.fx.symbolic_trace(nn.Linear(2, 3)), ("weight",), ValueError, "fx"),
    "compiled": (lambda: torch.compile(nn.Linear(2, 3)), ("_orig_mod.weight",), ValueError,
                 "torch.compile"),
    "own forward": (compiled_linear, ("weight",), ValueError, "has one of its own"),
    "out_proj": (lambda: nn.MultiheadAttention(4, 2).out_proj, ("weight",), ValueError,
                 "'out_proj.weight'"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.filterwarnings("ignore")
def test_mistakes_are_found_before_anything_changes(mistake: str) -> None:
    make, arguments, error, message = MISTAKES[mistake]
    module = make()
    before = (type(module), dict(getattr(module, "__dict__", {})))
    with pytest.raises(error, match=message):
        WeightDrop(module, *arguments)
    assert (type(module), dict(getattr(module, "__dict__", {}))) == before


def test_mistakes_that_come_later() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    outer: Any = WeightDrop(model, "0.weight", 0.5)
    WeightDrop(model[0], "weight", 0.5)
    with pytest.raises(RuntimeError, match="weight of the Linear would be masked twice"):
        outer(torch.ones(2, 4))
    layer: Any = WeightDrop(nn.Linear(4, 4), "weight", 0.5)
    with pytest.raises(TypeError, match="a Linear with WeightDrop is made by WeightDrop on"):
        type(layer)(4, 4)
    nn.utils.parametrize.register_parametrization(layer, "bias", nn.Identity())
    assert not torch.equal(layer(torch.ones(2, 4)), layer(torch.ones(2, 4)))
    with pytest.raises(ValueError, match="made a ParametrizedLinear after"):
        WeightDrop.remove(layer)
