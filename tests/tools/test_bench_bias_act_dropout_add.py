"""bench/bias_act_dropout_add.py compares what it says."""

from __future__ import annotations

import torch
from support.bench_scripts import script

bench = script("bias_act_dropout_add")


def test_subjects_compute_the_same() -> None:
    """In the mean over 20000 rows, whose standard error is (p / (1 - p) / 20000)^0.5 times gelu."""
    torch.manual_seed(0)
    input, bias, residual = torch.randn(1, 5), torch.randn(5), torch.randn(1, 5)
    wide = [tensor.expand(20_000, 5) for tensor in (input, residual)]
    expected = torch.nn.functional.gelu(input + bias) + residual
    # |z| < 6 fails by chance with probability 2e-9, ten times.
    bound = 6 * (bench.P / (1 - bench.P) / 20_000) ** 0.5 * (expected - residual).abs() + 1e-4
    for layer in (bench.OP.ours(bench.P), bench.OP.peers[bench.EAGER](bench.P)):
        assert ((layer(wide[0], bias, wide[1]).mean(0) - expected).abs() <= bound).all()
