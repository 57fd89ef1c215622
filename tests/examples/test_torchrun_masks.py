"""examples/torchrun_masks.py in two processes, as torchrun starts them."""

from __future__ import annotations

from pathlib import Path

from support.examples import files_of, run_example

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def test_two_ranks(tmp_path: Path) -> None:
    """The script itself compares masks, losses and parameters, and fails if they are wrong."""
    done = run_example("torchrun_masks", "--quick", "--out", str(tmp_path), launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "2 ranks on" in said and "same, bit for bit, on 2 of 2 ranks" in said
    assert "after torch.manual_seed(seed) 1 " in said
    assert "after torch.manual_seed(seed + rank) 2 " in said
    assert ".png" in files_of(tmp_path)
    states = {path.stem for path in (tmp_path / "torchrun_masks_checkpoint").glob("*.distcp")}
    assert len(states) == 2, "each rank saves a state of its own"
