"""The modules with parameters train in two processes as in one: DDP and FSDP2, over gloo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import two_processes
from small_calls import each_op
from torch import Tensor

from fused_dropout._tools.table import Op


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder where rank 0 has left the parameters."""
    folder = tmp_path_factory.mktemp("two_processes")
    torch.multiprocessing.spawn(two_processes.run, (str(folder),), two_processes.PROCESSES)
    return folder


@pytest.fixture(scope="module")
def alone() -> dict[str, Tensor]:
    with torch.random.fork_rng():
        return two_processes.trained_alone()


@each_op("DDP and FSDP2")
@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_parameters_are_those_of_one_process(
    op: Op, how: str, trained: Path, alone: dict[str, Tensor]
) -> None:
    found = torch.load(trained / f"{how}.pt")
    assert found.keys() == alone.keys()
    before = dict(two_processes.model_of().named_parameters())
    for layer in (layer for layer in op.layers if layer.has_parameters()):
        prefix = f"parts.{layer.name}."
        names = [name for name in alone if name.startswith(prefix)]
        assert names
        for name in names:
            torch.testing.assert_close(found[name], alone[name], rtol=1e-10, atol=1e-12)
            assert not torch.equal(found[name], before[name]), "it has not trained"
