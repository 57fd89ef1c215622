"""How the pages are written."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    cells = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(row) + " |" for row in cells]


def with_tables(page: str, tables: Mapping[str, Sequence[str]]) -> str:
    """The page with each table between `<!-- table: NAME -->` and `<!-- /table -->`.

    Raises:
        ValueError: the page has no place for a table, or one for a table that does not exist.
    """
    places = re.findall(r"^<!-- table: (.*) -->$", page, re.MULTILINE)
    if sorted(places) != sorted(tables):
        raise ValueError(f"the page has places for {places}, the tables are {list(tables)}")
    for name, lines in tables.items():
        start = f"<!-- table: {name} -->\n"
        before, _, rest = page.partition(start)
        _, end, after = rest.partition("<!-- /table -->\n")
        if not end:
            raise ValueError(f"the place for the table {name!r} has no end")
        # A blank line on either side: Markdown begins a table only after one.
        page = before + start + "\n" + "\n".join(lines) + "\n\n" + end + after
    return page
