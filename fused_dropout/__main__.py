"""`python -m fused_dropout` is the console script `fused-dropout`."""

from __future__ import annotations

import sys

from fused_dropout._tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
