"""`python -m fused_dropout._tools.table` prints docs/support.md."""

from __future__ import annotations

from fused_dropout._tools.table import PROPERTIES, ops
from fused_dropout._tools.table.operators import operators


def support_page() -> str:
    """docs/support.md: the rows with their properties."""
    lines = [
        "# What every op is tested for",
        "",
        "`python -m fused_dropout._tools.table > docs/support.md` writes this page from the table "
        "in `fused_dropout/_tools/table/`. The tests in `tests/table/` run over the same table: "
        "where this page says yes, they have run it.",
        "",
        *(f"- **{name}**: {meaning}." for name, meaning in PROPERTIES.items()),
        "",
        *_markdown_table(
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
        *_markdown_table(
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
        *_markdown_table(
            ["operator", "gradients of"],
            [[f"`{op.name}`", ", ".join(op.differentiable)] for op in operators()],
        ),
    ]
    return "\n".join(lines) + "\n"


def _markdown_table(header: list[str], rows: list[list[str]]) -> list[str]:
    cells = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(row) + " |" for row in cells]


if __name__ == "__main__":
    print(support_page(), end="")
