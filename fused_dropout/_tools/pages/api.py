"""docs/api.md: every public name, with the first sentence of its docstring."""

from __future__ import annotations

import inspect
import re
from types import ModuleType
from typing import Any

import fused_dropout
from fused_dropout import functional, nn, reference, schedules
from fused_dropout._tools.pages.markdown import markdown_table

MODULES = (fused_dropout, functional, nn, schedules, reference)
# What has no docstring of its own.
_CONSTANTS = {
    "__version__": "The version.",
    "ACTIVATIONS": "The activations of `bias_act_dropout_add` by name.",
}


def api_page() -> str:
    """What `__all__` of every public module names."""
    lines = [
        "# Every public name",
        "",
        "`python -m fused_dropout._tools.pages docs` writes this page from the docstrings; "
        "`help(name)` shows them in full. Modules with an underscore in their path are private.",
    ]
    for module in MODULES:
        rows = [[f"`{name}`", _summary(module, name)] for name in module.__all__]
        lines += ["", f"## `{module.__name__}`", "", *markdown_table(["name", ""], rows)]
    return "\n".join(lines) + "\n"


def _summary(module: ModuleType, name: str) -> str:
    """The first paragraph of a docstring, in Markdown."""
    if name in _CONSTANTS:
        return _CONSTANTS[name]
    documented: Any = getattr(module, name)
    first = inspect.cleandoc(documented.__doc__).split("\n\n")[0].replace("\n", " ")
    return re.sub(r":\w+:`([^`]*)`|``([^`]*)``", r"`\1\2`", first).replace("|", "\\|")
