"""docs/experiments.md, the README's pictures of experiments, and the files they are made from."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.documents import DOCS, README

from fused_dropout._tools.pages.experiments import (
    committed_results,
    experiments_page,
    with_experiments,
)
from fused_dropout._tools.pictures import digest, digest_in
from fused_dropout._tools.reproduce import plots
from fused_dropout._tools.reproduce.experiment import Experiment
from fused_dropout._tools.reproduce.experiments import EXPERIMENTS
from fused_dropout._tools.reproduce.results import HOLDS, NOT_JUDGED, Results

FOUND = committed_results(DOCS)
NAMES = [experiment.name for experiment, _ in FOUND]
each = pytest.mark.parametrize(("experiment", "results"), FOUND, ids=NAMES)


def test_every_experiment_has_its_files() -> None:
    assert [e.name for e in EXPERIMENTS] == NAMES
    files = {path.name for path in (DOCS / "experiments").iterdir()}
    assert files == {f"{e.name}{suffix}" for e in EXPERIMENTS for suffix in (".json", ".png")}


def test_page_and_readme_say_what_the_files_say() -> None:
    assert (DOCS / "experiments.md").read_text() == experiments_page(FOUND)
    assert README.read_text() == with_experiments(README.read_text(), FOUND)


def test_a_readme_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="has no lines"):
        with_experiments("# A page\n", FOUND)


@each
def test_picture_shows_the_file(experiment: Experiment, results: Results) -> None:
    files = DOCS / "experiments"
    content = (files / f"{experiment.name}.json").read_bytes()
    assert results.to_json() == content
    assert digest_in((files / f"{experiment.name}.png").read_bytes()) == digest(content)
    assert digest_in(plots.picture(experiment, results)) == digest(content)


@each
def test_file_is_a_default_run(experiment: Experiment, results: Results) -> None:
    document = results.document
    assert document["experiment"] == experiment.name
    assert results.settings == [setting.name for setting in experiment.settings]
    budget = document["budget"]
    assert budget["name"] == "default"
    assert budget["seeds"] == experiment.default.seeds
    assert budget["epochs"] == experiment.default.epochs
    assert document["seconds"] < 600


@each
def test_verdicts_are_those_of_the_checks(experiment: Experiment, results: Results) -> None:
    if results.document["stand_in"]:
        assert {verdict.state for verdict in results.verdicts} == {NOT_JUDGED}
    else:
        assert results.verdicts == [check.judge(results) for check in experiment.checks]


def test_what_the_pages_promise() -> None:
    found = {experiment.name: results for experiment, results in FOUND}
    assert {verdict.state for verdict in found["claims"].verdicts} == {HOLDS}
    assert 0.84 <= found["d2l"].mean("dropout", "test_accuracy") <= 0.86
    errors = {
        name: found["dropconnect"].mean(name, "error")
        for name in ("none", "dropout", "dropconnect")
    }
    assert errors["dropout"] < errors["none"] and errors["dropconnect"] < errors["none"]


def test_a_picture_of_other_figures_is_noticed(tmp_path: Path) -> None:
    experiment, results = FOUND[0]
    other = Results({**results.document, "seconds": 0.0})
    assert digest_in(plots.picture(experiment, other)) != digest(results.to_json())
