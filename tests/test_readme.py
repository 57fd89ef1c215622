"""The README's code runs, and what it says about the package is true."""

from __future__ import annotations

import re
from pathlib import Path

import torch

import fused_dropout

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_quickstart_runs(place: torch.device) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    namespace: dict[str, object] = {}
    exec(code, namespace)
    model = namespace["model"]
    assert isinstance(model, torch.nn.Sequential)
    assert model[0].weight.grad is not None
    assert namespace["kept"].device == model[0].weight.device == place
    assert torch.equal(namespace["kept"], fused_dropout.reference.mask((1024, 784), 0.5, seed=0))


def test_ops_of_the_table_exist() -> None:
    for name in re.findall(r"^\| `(functional\.\w+)`", README, re.MULTILINE):
        assert callable(getattr(fused_dropout.functional, name.partition(".")[2]))
