"""docs/support.md: what every op is tested for."""

from __future__ import annotations

from fused_dropout._tools.pages.markdown import markdown_table
from fused_dropout._tools.table import PROPERTIES, operators, ops


def support_page() -> str:
    """The rows of the table of ops, with their properties."""
    lines = [
        "# What every op is tested for",
        "",
        "`python -m fused_dropout._tools.pages docs` writes this page from the table in "
        "`fused_dropout/_tools/table/`. The tests in `tests/table/` run over the same table: where "
        "this page says yes, they have run it.",
        "",
        *(f"- **{name}**: {meaning}." for name, meaning in PROPERTIES.items()),
        "",
        *markdown_table(
            ["op", "modules", "gradients of"],
            [
                [
                    f"`{op.name}`",
                    ", ".join(f"`{layer.name}`" for layer in op.layers),
                    ", ".join(op.operand_names),
                ]
                for op in ops()
            ],
        ),
        "",
        *markdown_table(
            ["op", *PROPERTIES],
            [
                [f"`{op.name}`", *("yes" if name in op.properties else "" for name in PROPERTIES)]
                for op in ops()
            ],
        ),
        "",
        "The operators in `torch.ops.fused_dropout`. All pass `torch.library.opcheck` with each of "
        "its four utilities. Gradients of the named tensors are right in eager mode, `make_fx` and "
        "`torch.export`; a tangent in forward mode is right or an error.",
        "",
        *markdown_table(
            ["operator", "gradients of"],
            [[f"`{op.name}`", ", ".join(op.differentiable)] for op in operators()],
        ),
    ]
    return "\n".join(lines) + "\n"
