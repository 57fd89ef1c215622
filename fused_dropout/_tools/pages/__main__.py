"""`python -m fused_dropout._tools.pages docs` writes the pages into the folder docs."""

from __future__ import annotations

import argparse
from pathlib import Path

from fused_dropout._tools.pages.api import api_page
from fused_dropout._tools.pages.experiments import write_experiments
from fused_dropout._tools.pages.performance import write_performance
from fused_dropout._tools.pages.support import support_page


def main() -> None:
    """Write them."""
    parser = argparse.ArgumentParser(description="Writes the pages that are made from the code.")
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    for name, page in (("support.md", support_page()), ("api.md", api_page())):
        (folder / name).write_text(page)
    write_performance(folder)
    write_experiments(folder)


if __name__ == "__main__":
    main()
