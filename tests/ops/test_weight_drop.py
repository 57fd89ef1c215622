"""nn.WeightDrop: the module on weights that the reference has masked."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.weight_drop import (
    CASES,
    SEED,
    assert_same,
    each_case,
    input_of,
    made,
    output_of,
    sequences,
    with_gradients,
    wrapped,
)
from torch import Tensor, nn

from fused_dropout import reference
from fused_dropout.nn import WeightDrop
from fused_dropout.schedules import LinearSchedule

pytestmark = pytest.mark.usefixtures("one_thread")

MODES = ("connection", "row", "column")


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    layer: Any = WeightDrop(nn.Linear(40, 30, dtype=dtype), "weight", 0.5)
    output = layer(torch.randn(7, 40, dtype=dtype))
    output.sum().backward()
    assert output.dtype == dtype and 0.3 < (layer.weight.grad == 0).double().mean() < 0.7
