"""docs/experiments.md and the README's pictures, from the JSON files in docs/experiments.

`fused-dropout reproduce all --data DIR --out docs/experiments` makes these files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from fused_dropout._tools.pages.markdown import markdown_table
from fused_dropout._tools.reproduce import plots
from fused_dropout._tools.reproduce.checks import LEVEL
from fused_dropout._tools.reproduce.data import WHERE
from fused_dropout._tools.reproduce.experiment import Experiment
from fused_dropout._tools.reproduce.experiments import EXPERIMENTS
from fused_dropout._tools.reproduce.report import WORDS, data_text, notes, table_cells
from fused_dropout._tools.reproduce.results import CONTRADICTED, HOLDS, NOT_JUDGED, OPEN, Results

_START, _END = "<!-- experiments -->", "<!-- /experiments -->"
_COLUMNS = 4  # of pictures in the README
_WIDTH = 210  # of such a picture, in pixels


def write_experiments(docs: Path) -> None:
    """Write the page and the README's table; draw the pictures again."""
    found = committed_results(docs)
    for experiment, results in found:
        path = docs / "experiments" / f"{experiment.name}.png"
        path.write_bytes(plots.picture(experiment, results))
    (docs / "experiments.md").write_text(experiments_page(found))
    readme = docs.parent / "README.md"
    readme.write_text(with_experiments(readme.read_text(), found))


def committed_results(docs: Path) -> list[tuple[Experiment, Results]]:
    """The experiments of which docs/experiments has a JSON file, in the order of the list."""
    files = [(each, docs / "experiments" / f"{each.name}.json") for each in EXPERIMENTS]
    return [(each, Results(json.loads(path.read_text()))) for each, path in files if path.is_file()]


def with_experiments(readme: str, found: list[tuple[Experiment, Results]]) -> str:
    """The README with the pictures of the experiments between its two marks.

    Raises:
        ValueError: it does not have the marks.
    """
    before, start, rest = readme.partition(_START + "\n")
    _, end, after = rest.partition(_END + "\n")
    if not start or not end:
        raise ValueError(f"README.md has no lines {_START} and {_END}")
    return "\n".join([before + _START, "", *_gallery(found), "", _END]) + "\n" + after


def _gallery(found: list[tuple[Experiment, Results]]) -> list[str]:
    """A table of pictures, each with its name below."""
    cells = [
        f'<a href="docs/experiments.md#{experiment.name}">'
        f'<img src="docs/experiments/{experiment.name}.png" width="{_WIDTH}" '
        f'alt="{experiment.title}"></a><br>`{experiment.name}`: {experiment.title}'
        for experiment, _ in found
    ]
    cells += [""] * (-len(cells) % _COLUMNS)
    rows = [cells[place : place + _COLUMNS] for place in range(0, len(cells), _COLUMNS)]
    return markdown_table([""] * _COLUMNS, rows)


def experiments_page(found: list[tuple[Experiment, Results]]) -> str:
    """The whole page."""
    seconds = sum(results.document["seconds"] for _, results in found)
    lines = [
        "# Experiments from the papers",
        "",
        "The experiments and theorems that dropout and DropConnect come from, each by one command:",
        "",
        "    pip install 'fused_dropout[demo]'",
        "    fused-dropout reproduce                     # the list, with the minutes each takes",
        "    fused-dropout reproduce claims              # the theorems, in seconds",
        "    fused-dropout reproduce d2l --data DIR      # one experiment on the source's data",
        "    fused-dropout reproduce all --data DIR --out docs/experiments    # what is below",
        "",
        "DIR holds folders `mnist` and `fashion-mnist`, each with its four IDX files, plain or "
        "gzipped. For one experiment it may be such a folder itself. Where to get the data:",
        "",
        *(f"- {kind}: {_linked(place)}" for kind, place in WHERE.items()),
        "",
        "Without `--data` the 8x8 digits of scikit-learn stand in, and no claim is judged. "
        "`--quick` shows in seconds that an experiment runs; `--full` is the source's own "
        "schedule. A run takes one process for each processor (`--processes`), and its figures "
        "depend on the seeds alone, not on how many run at once.",
        "",
        "A setting is trained with several seeds; tables show mean ± standard deviation over "
        "them. Settings with the same seed start from the same weights and see the same batches. "
        f"A claim of a source is judged by a one-sided t test at the level {LEVEL:g}, paired by "
        f"seed where it compares two settings: it *{WORDS[HOLDS]}* if the seeds show it, is "
        f"*{WORDS[CONTRADICTED].lower()}* if they show the opposite (then the command's exit "
        f"status is 1), and *{WORDS[OPEN]}* if they show neither. *{WORDS[NOT_JUDGED]}*: the data "
        "are not the source's, or the run is too short. "
        "So a true claim is called contradicted at most once in a hundred runs. Recipes were "
        "chosen by pilot runs, some of them on seeds and test images that are used again below, "
        "and the p values do not account for that: an experiment says so where a choice was made "
        "with its results in view. Claims that hold here are shown, not confirmed independently.",
        "",
        f"The runs below took {seconds / 60:.0f} minutes together. "
        "`python -m fused_dropout._tools.pages docs` writes this page from the JSON files in "
        "`docs/experiments` and draws the pictures.",
        "",
        *markdown_table(
            ["name", "what it shows", "took", "claims"],
            [
                [
                    f"[`{experiment.name}`](#{experiment.name})",
                    experiment.title,
                    f"{results.document['seconds']:.0f} s",
                    _summary(results),
                ]
                for experiment, results in found
            ],
        ),
    ]
    for experiment, results in found:
        lines += ["", *_section(experiment, results)]
    return "\n".join(lines) + "\n"


def _escaped(cells: list[str]) -> list[str]:
    """A bar in a cell is not the end of the cell."""
    return [cell.replace("|", "\\|") for cell in cells]


def _linked(text: str) -> str:
    """Addresses become links, and code is shown as code."""
    text = re.sub(r"https?://[\w./-]*\w", r"<\g<0>>", text)
    return re.sub(r"torchvision\.\S+\([^)]*\)", r"`\g<0>`", text)


def _summary(results: Results) -> str:
    states = [verdict.state for verdict in results.verdicts]
    counts = {WORDS[state]: states.count(state) for state in dict.fromkeys(states)}
    return ", ".join(f"{word}: {count}" for word, count in counts.items())


def _section(experiment: Experiment, results: Results) -> Iterator[str]:
    document = results.document
    versions = document["versions"]
    yield from (f"## {experiment.name}", "")
    yield f"{experiment.question} Source: {experiment.source}."
    yield from ("", f"![{experiment.title}](experiments/{experiment.name}.png)", "")
    header, rows = table_cells(experiment, results)
    yield from markdown_table(_escaped(header), [_escaped(row) for row in rows])
    yield ""
    for note in notes(experiment, results):
        yield f"- {note}"
    budget = document["budget"]
    size = "" if budget["examples"] is None else f"{budget['examples']} training examples, "
    epochs = f"{budget['epochs']} epochs, " if budget["epochs"] else ""
    yield from (
        f"- `{document['command']}`: {data_text(results)}, {size}{epochs}"
        f"{document['seconds']:.0f} s on {document['device']['cores']} cores "
        f"({document['device']['cpu']}, {document['device']['isa']}), {document['date'][:10]}, "
        f"torch {versions['torch']}, fused_dropout {versions['fused_dropout']} at commit "
        f"{document['commit'][:10]}",
    )
