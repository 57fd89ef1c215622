"""Modules that nn.WeightDrop drops weights of, what they are called with, and what they return."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fused_dropout.nn import WeightDrop

SEED = 5


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


def assert_same(ours: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    assert len(ours) == len(others)
    assert all(torch.equal(a, b) for a, b in zip(ours, others, strict=True))
