"""The pages of documentation, and what is in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.paths import ROOT

README = ROOT / "README.md"
DOCS = ROOT / "docs"
PAGES = (README, ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")))


def python_blocks(page: Path) -> list[str]:
    """The code of every ```python block of a page."""
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def run_blocks(page: Path, *numbers: int, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run these blocks of a page, or all; `names` are there already, and get what is defined."""
    names = {} if names is None else names
    blocks = python_blocks(page)
    for number in numbers or range(len(blocks)):
        exec(compile(blocks[number], f"{page.name}, block {number}", "exec"), names)
    return names


def code_in(page: Path) -> Iterator[str]:
    """What a page shows as code: in backticks on one line, and whole lines of code."""
    fenced = False
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            yield line.strip()
        else:
            yield from re.findall(r"`([^`]+)`", line)


def anchors_of(page: Path) -> set[str]:
    """What links may name after a # in this page: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in headings}
