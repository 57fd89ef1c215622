"""bench/gaussian_dropout.py compares what it says."""

from __future__ import annotations

import pytest
import torch
from support.bench_scripts import script

bench = script("gaussian_dropout")


@pytest.mark.parametrize("op", bench.OPS)
def test_subjects_compute_the_same(op: str) -> None:
    """The mean of 200000 elements within 2 %, their variance within 3 %; the seed is fixed."""
    torch.manual_seed(0)
    others = {"concrete_dropout": torch.tensor(-2.0), "gaussian_noise": torch.tensor(0.25)}
    second = [others[op].expand(200_000 if op == "gaussian_noise" else ())] if op in others else []
    ours, eager = (layer(torch.full((200_000,), 3.0), *second) for layer in bench.layers(op))
    torch.testing.assert_close(ours.mean(), eager.mean(), rtol=0.02, atol=0)
    torch.testing.assert_close(ours.var(), eager.var(), rtol=0.03, atol=0)
