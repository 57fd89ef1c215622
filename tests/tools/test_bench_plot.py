"""`fused-dropout bench --plot`: what is drawn, for each kind of sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.benchmarks import run_bench

from fused_dropout._tools.bench import sweep_plot, sweeps

figure_module = pytest.importorskip("matplotlib.figure")
pytestmark = pytest.mark.usefixtures("small_problems")


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are drawn."""
    made: list[Any] = []

    class Figure(figure_module.Figure):  # type: ignore[misc, name-defined]
        def savefig(self, *arguments: Any, **keywords: Any) -> None:
            made.append(self)
            super().savefig(*arguments, **keywords)

    monkeypatch.setattr(figure_module, "Figure", Figure)
    return made


@pytest.mark.parametrize("sweep", [None, *sweeps.SWEEPS])
def test_each_sweep_is_drawn(sweep: str | None, tmp_path: Path, figures: list[Any]) -> None:
    path = tmp_path / "figures.png"
    swept = ["--sweep", sweep, "--max-size", "32"] if sweep else []
    document = run_bench(tmp_path, "channel_dropout", *swept, "--plot", str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
    (figure,) = figures
    titles = [axes.get_title() for axes in figure.axes if axes.axison]
    assert titles == [f"dropout{n}d, {phase}" for n in (1, 2, 3) for phase in ("forward", "total")]
    values = list(dict.fromkeys(r["value"] for r in document["records"] if r["op"] == "dropout2d"))
    for axes in figure.axes[2:4]:
        labels = [text.get_text() for text in axes.get_legend().get_texts()]
        assert [label.partition(" ")[0] for label in labels] == ["fused_dropout", "torch", "copy_"]
        if sweep in sweep_plot._NUMBERS:
            assert all(list(line.get_xdata()) == values for line in axes.get_lines())
            assert len(axes.get_lines()) == 3
            assert axes.get_xscale() == ("log" if sweep == "size" else "linear")
        else:
            shown = [label.get_text().replace("\n", " ") for label in axes.get_xticklabels()]
            assert shown == ["" if value is None else value for value in values]
            assert len(axes.patches) == 3 * len(values)


def test_what_was_not_measured_is_not_drawn(tmp_path: Path, figures: list[Any]) -> None:
    """A peer that is not installed, and the backward pass of an op in place."""
    run_bench(tmp_path, "dropout", "drop_path", "--plot", str(tmp_path / "figures.png"))
    shown = [axes.get_title() for axes in figures[0].axes if axes.axison]
    assert "dropout_inplace, forward" in shown and "dropout_inplace, total" not in shown
    assert len(shown) == 7


def test_nothing_measured_is_no_crash() -> None:
    record = {"op": "dropout", "phase": None, "seconds": None}
    assert sweep_plot.plot([record], "size", "title").startswith(b"\x89PNG")
