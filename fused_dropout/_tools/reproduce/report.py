"""An experiment's results as a table and lines of text, for the terminal and for docs/."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from fused_dropout._tools.reproduce.data import DIGITS, WHERE
from fused_dropout._tools.reproduce.experiment import Experiment, Metric
from fused_dropout._tools.reproduce.results import CONTRADICTED, HOLDS, NOT_JUDGED, OPEN, Results

WORDS = {
    HOLDS: "holds",
    OPEN: "open",
    CONTRADICTED: "CONTRADICTED",
    NOT_JUDGED: "not judged",
}


def print_report(console: Console, experiment: Experiment, results: Results) -> None:
    """The table, the verdicts and what is smaller than in the source."""
    header, rows = table_cells(experiment, results)
    table = Table(title=f"{experiment.title} ({data_text(results)})")
    for index, column in enumerate(header):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for line in notes(experiment, results):
        console.print(line, highlight=False, markup=False)


def table_cells(experiment: Experiment, results: Results) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a row for each setting, mean ± deviation over seeds, the source's number."""
    metrics = [
        metric
        for metric in experiment.metrics
        if any(results.values(name, metric.name) for name in results.settings)
        or any(results.combined(name, metric.name) is not None for name in results.settings)
    ]
    header, cells = [""], {setting.name: [setting.label] for setting in experiment.settings}
    for metric in metrics:
        printed = [experiment.published.get((s.name, metric.name), "") for s in experiment.settings]
        shows_source = any(printed) and not results.is_stand_in
        header.append(metric.label)
        header += ["in the source"] * shows_source
        for setting, source in zip(experiment.settings, printed, strict=True):
            cells[setting.name].append(_cell(results, setting.name, metric))
            cells[setting.name] += [source] * shows_source
    return header, list(cells.values())


def _cell(results: Results, setting: str, metric: Metric) -> str:
    combined = results.combined(setting, metric.name)
    if combined is not None:
        return _number(combined, metric)
    values = results.values(setting, metric.name)
    if not values:
        return ""
    mean = _number(results.mean(setting, metric.name), metric)
    if len(set(values)) == 1:
        return mean
    return f"{mean} ± {_number(results.deviation(setting, metric.name), metric)}"


def _number(value: float, metric: Metric) -> str:
    return f"{value:.{metric.digits}f}" if metric.digits >= 0 else f"{value:.1e}"


def notes(experiment: Experiment, results: Results) -> Iterator[str]:
    """The verdicts; what differs from the source."""
    for verdict in results.verdicts:
        yield f"{WORDS[verdict.state]}: {verdict.claim} ({verdict.reason})"
    if results.is_stand_in:
        own = experiment.data[0]
        yield (
            f"The source's data are {own}, these are {results.data}: no claim is judged. "
            f"{own}, for --data: {WHERE[own]}."
        )
    budget = results.document["budget"]["name"]
    if budget == "quick":
        yield "--quick shows that it runs; its figures mean nothing."
    elif budget == "default" and experiment.smaller:
        yield f"Smaller than in the source: {experiment.smaller}"
    if experiment.chosen:
        yield f"Chosen after results were seen: {experiment.chosen}"


def data_text(results: Results) -> str:
    """What was trained on, and how often."""
    budget = results.document["budget"]
    seeds = "1 seed" if budget["seeds"] == 1 else f"{budget['seeds']} seeds"
    if not results.data:
        return seeds
    name = "scikit-learn's digits" if results.data == DIGITS else results.data
    return f"{name}, {seeds}"
