"""What the tests of the benchmark share: rows of its results, runs of it on small problems."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fused_dropout._tools.bench.ops import bench_ops
from fused_dropout._tools.cli import main

FAMILY = {op.name: op for ops in bench_ops().values() for op in ops}
EACH_OP = pytest.mark.parametrize("name", sorted(FAMILY))


def row(document: dict[str, Any], name: str, p: float | None) -> dict[str, Any]:
    (found,) = (r for r in document["rows"] if r["name"] == name and r["p"] == p)
    return found


def run_bench(folder: Path, *arguments: str, status: int = 0) -> dict[str, Any]:
    """What `fused-dropout bench --quick` writes."""
    path = folder / "figures.json"
    command = ["bench", "--quick", "--repeats", "1", "--json", str(path), *arguments]
    assert main(command) == status
    document: dict[str, Any] = json.loads(path.read_text())
    return document
