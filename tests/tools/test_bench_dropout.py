"""bench/dropout.py compares what it says."""

from __future__ import annotations

import torch
from support.bench_scripts import script

from fused_dropout._tools.bench.devices import CPU

bench = script("dropout")
SHAPE = (2, 3, 4, 5)


def test_what_is_kept_for_backward() -> None:
    """A mask is drawn again from 16 bytes; torch keeps it."""
    result = bench.measure(
        SHAPE, "bfloat16", rounds=1, compiled=False, device=CPU, progress=lambda text: None
    )
    assert [(row["name"], row["p"]) for row in result["rows"]] == bench.ROWS
    assert [row["saved_bytes"] for row in result["rows"]] == [16, 16, 16, 16, 2 * 120, None]


def test_calls_do_what_their_phase_says() -> None:
    calls = bench._Calls(SHAPE, "float32", "cpu")
    for name, p in bench.ROWS:
        target = calls(name, p, bench.IN_PLACE)
        if name == bench.COPY:
            assert torch.equal(target(), calls.contiguous.operands[0])
            continue
        output = target()
        assert output is target(), "in place"
        (gradient,) = calls(name, p, bench.TOTAL)()
        factors = (gradient / calls._of(name).grad)[gradient != 0]
        torch.testing.assert_close(factors * (1 - p), torch.ones_like(factors), rtol=1e-4, atol=0)
        channels = calls(name, p, bench.CHANNELS)()
        assert torch.equal((channels != 0).any((2, 3)), (channels != 0).all(3).all(2))
        is_last = channels.is_contiguous(memory_format=torch.channels_last)
        assert is_last == (name == bench.CHANNELS_LAST)
