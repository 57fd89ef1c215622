"""What the tests of the benchmark read in its results."""

from __future__ import annotations

from typing import Any


def row(document: dict[str, Any], name: str, p: float | None) -> dict[str, Any]:
    (found,) = (r for r in document["rows"] if r["name"] == name and r["p"] == p)
    return found
