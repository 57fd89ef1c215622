"""The README's code runs, and what it says about the package is true."""

from __future__ import annotations

import re

import torch
from support.paths import ROOT

import fused_dropout

README = (ROOT / "README.md").read_text()
OPERATORS = (ROOT / "docs" / "operators.md").read_text()


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


def test_raw_operators_run_as_documented() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", OPERATORS, re.DOTALL)
    namespace: dict[str, object] = {}
    exec(code, namespace)
    x, output = namespace["x"], namespace["kept_twofold"]
    assert isinstance(x, torch.Tensor) and isinstance(output, torch.Tensor)
    assert torch.equal(output, fused_dropout.functional.dropout(x, 0.5, seed=0))
    assert torch.equal(x.grad, torch.where(output == 0, 0.0, 2.0))


def test_links_lead_to_files() -> None:
    for link in re.findall(r"\]\(([\w/.]+)\)", README):
        assert (ROOT / link).is_file(), link
