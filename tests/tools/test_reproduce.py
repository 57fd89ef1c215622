"""`fused-dropout reproduce`: its arguments, its files, its exit status, and how it judges."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from support.idx_files import write_idx_folder
from support.paths import ROOT

from fused_dropout._tools import cli
from fused_dropout._tools.common import ArgumentError, report_console
from fused_dropout._tools.pictures import digest, digest_in
from fused_dropout._tools.reproduce import command, data, experiments, plots
from fused_dropout._tools.reproduce.checks import LEVEL, AtLeast, AtMost, Between, Exact, Ordering
from fused_dropout._tools.reproduce.collect import results_of
from fused_dropout._tools.reproduce.experiment import Budget, Experiment, Job, Measured, Setting
from fused_dropout._tools.reproduce.experiments import EXPERIMENTS, claims, d2l
from fused_dropout._tools.reproduce.report import print_report, table_cells
from fused_dropout._tools.reproduce.results import (
    CONTRADICTED,
    HOLDS,
    NOT_JUDGED,
    OPEN,
    Results,
)

FOLDER = Path(experiments.__file__).parent
RUNS = ROOT / "docs" / "experiments"


def reproduce(*arguments: str | Path) -> int:
    return cli.main(["reproduce", *map(str, arguments)])


def results_with(values: dict[str, list[float]], metric: str = "error") -> Results:
    """Results with these values of one metric, by setting."""
    settings = {
        name: {"values": {metric: found}, "curves": {}, "images": {}, "combined": {}}
        for name, found in values.items()
    }
    return Results({"settings": settings, "data": "mnist", "verdicts": []})


# ---- the command --------------------------------------------------------------------------------


def test_without_a_name_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce() == 0
    listed = capsys.readouterr().out
    for experiment in EXPERIMENTS:
        assert experiment.name in listed and experiment.default.time in listed


def test_claims_hold_and_leave_their_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce("claims", "--seeds", 2, "--processes", 1, "--out", tmp_path) == 0
    assert "CONTRADICTED" not in capsys.readouterr().out
    content = (tmp_path / "claims.json").read_bytes()
    document = json.loads(content)
    assert [verdict["state"] for verdict in document["verdicts"]] == [HOLDS] * len(claims.SETTINGS)
    assert document["versions"]["torch"] and document["date"] and "commit" in document
    assert document["budget"]["seeds"] == 2
    assert digest_in((tmp_path / "claims.png").read_bytes()) == digest(content)


def test_a_quick_run_is_the_same_in_any_number_of_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for processes in (1, 2):
        out = tmp_path / str(processes)
        assert reproduce("d2l", "--quick", "--processes", processes, "--out", out) == 0
    one, two = (json.loads((tmp_path / name / "d2l.json").read_text()) for name in "12")
    assert one["settings"] == two["settings"]
    assert {verdict["state"] for verdict in one["verdicts"]} == {NOT_JUDGED}
    assert "its figures mean nothing" in capsys.readouterr().out


def test_a_contradicted_claim_is_exit_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = replace(claims.EXPERIMENT, checks=(Exact("0 > 1", "expectation", "allowed", "error"),))
    monkeypatch.setattr(experiments, "EXPERIMENTS", (wrong,))
    monkeypatch.setattr(command, "EXPERIMENTS", (wrong,))
    assert reproduce("claims", "--seeds", 1, "--processes", 1, "--out", tmp_path) == 1
    assert "contradicted: 0 > 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("d2L",), "no experiment is called 'd2L'; there are claims, d2l, "),
        (("d2l", "--seeds", "0"), "--seeds: must be an integer from 1"),
        (("d2l", "--quick", "--full"), "not allowed with"),
        (("d2l", "--data", "nowhere"), "--data nowhere does not exist"),
        (("d2l", "--data", "."), "--data . holds none of what this needs (fashion-mnist: four IDX"),
        (("claims", "--out", "file/out"), "cannot write --out file/out"),
    ],
)
def test_wrong_arguments(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    try:
        status = reproduce(*arguments)
    except SystemExit as exit:  # argparse's own
        status = exit.code
    assert status == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_damaged_data_is_reported_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    write_idx_folder(folder)
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    assert reproduce("d2l", "--data", tmp_path, "--out", tmp_path / "out") == 2
    assert "truncated" in capsys.readouterr().err


# ---- the data -----------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["mnist", "MNIST/raw", ".", "mnist/."])
def test_where_the_files_may_lie(place: str, tmp_path: Path) -> None:
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    write_idx_folder(folder)
    assert data.find(("fashion-mnist", "mnist"), str(tmp_path)) in ("mnist", "fashion-mnist")
    images = data.load("mnist", str(tmp_path))
    assert images.shape == (1, 5, 5) and images.features == 25 and len(images.train_x) == 6


def test_the_folders_name_tells_the_data_apart(tmp_path: Path) -> None:
    folder = tmp_path / "mnist"
    folder.mkdir()
    write_idx_folder(folder)
    assert data.find(("fashion-mnist", "mnist"), str(folder)) == "mnist"
    with pytest.raises(ValueError, match="holds none of what this needs"):
        data.find(("fashion-mnist",), str(folder))


class FakeCifar10:
    """As torchvision.datasets.CIFAR10 holds its images: [N, height, width, channels]."""

    def __init__(self, root: str, train: bool) -> None:
        count = 6 if train else 4
        self.data = np.arange(count * 32 * 32 * 3, dtype=np.uint8).reshape(count, 32, 32, 3)
        self.targets = list(range(count))


class FakeSvhn:
    """As torchvision.datasets.SVHN holds its images: [N, channels, height, width]."""

    def __init__(self, root: str, split: str) -> None:
        if split == "test":
            raise RuntimeError("Dataset not found or corrupted")
        self.data, self.labels = np.zeros((2, 3, 32, 32), np.uint8), np.zeros(2)


def test_data_of_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision = ModuleType("torchvision")
    torchvision.datasets = SimpleNamespace(CIFAR10=FakeCifar10, SVHN=FakeSvhn)
    monkeypatch.setitem(sys.modules, "torchvision", torchvision)
    wanted = ("cifar10", "svhn", "fashion-mnist")
    (tmp_path / "train_32x32.mat").touch()
    assert data.find(wanted, str(tmp_path)) == "svhn"
    with pytest.raises(ArgumentError, match="cannot read svhn: Dataset not found"):
        data.load("svhn", str(tmp_path))
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert data.find(wanted, str(tmp_path)) == "cifar10"
    images = data.load("cifar10", str(tmp_path))
    assert images.shape == (3, 32, 32) and images.train_y.tolist() == list(range(6))
    pixel = images.test_x.view(-1, *images.shape)[2, 1, 5, 7] * 255.0
    assert round(pixel.item()) == FakeCifar10("", False).data[2, 5, 7, 1]


def test_without_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(ArgumentError, match="cifar10 needs torchvision"):
        data.load("cifar10", str(tmp_path))


def test_a_part_has_the_seeds_examples() -> None:
    images = data.load(data.DIGITS, None)
    part, again, other = images.part(100, 0), images.part(100, 0), images.part(100, 1)
    assert len(part.train_x) == len(part.train_y) == 100
    assert (part.train_x == again.train_x).all() and not (part.train_x == other.train_x).all()
    assert len(part.test_x) == len(images.test_x)
    assert images.part(10**6, 0) is images is images.part(None, 0)


# ---- the judgement ------------------------------------------------------------------------------


@pytest.mark.parametrize("higher_is_better", [False, True])
def test_orderings_are_scipys_paired_t_test(higher_is_better: bool) -> None:
    rng = np.random.default_rng(0)
    check = Ordering("", "error", "a", "b", higher_is_better)
    for shift, spread in ((-1.0, 0.5), (0.0, 1.0), (1.0, 0.5), (0.2, 0.05)):
        a, b = rng.normal(shift, spread, 6), rng.normal(0.0, spread, 6)
        verdict = check.judge(results_with({"a": list(a), "b": list(b)}))
        alternative = "greater" if higher_is_better else "less"
        p = stats.ttest_rel(a, b, alternative=alternative).pvalue
        assert verdict.state == (HOLDS if p < LEVEL else CONTRADICTED if p > 1 - LEVEL else OPEN)
        assert f"p = {p:.2g}" in verdict.reason


def test_a_true_claim_is_contradicted_as_rarely_as_stated() -> None:
    """Of 4000 claims on the border of truth; the bound is exceeded once in 10^6 runs."""
    rng = np.random.default_rng(1)
    check = Ordering("", "error", "a", "b")
    pairs = rng.normal(size=(4000, 2, 5))
    states = [check.judge(results_with({"a": list(a), "b": list(b)})).state for a, b in pairs]
    assert states.count(CONTRADICTED) <= stats.binom.ppf(1 - 1e-6, len(pairs), LEVEL)
    assert states.count(CONTRADICTED) >= stats.binom.ppf(1e-6, len(pairs), LEVEL)


@pytest.mark.parametrize(
    ("values", "at_least", "at_most"),
    [
        ([0.9, 0.91, 0.92], HOLDS, CONTRADICTED),
        ([0.4, 0.6, 0.5], OPEN, OPEN),
        ([0.1, 0.12, 0.11], CONTRADICTED, HOLDS),
        ([0.6, 0.6, 0.6], HOLDS, CONTRADICTED),
        ([0.5, 0.5, 0.5], OPEN, OPEN),
        ([0.9], NOT_JUDGED, NOT_JUDGED),
        ([0.9, float("nan")], NOT_JUDGED, NOT_JUDGED),
    ],
)
def test_bounds(values: list[float], at_least: str, at_most: str) -> None:
    results = results_with({"a": values})
    assert AtLeast("", "error", "a", 0.5).judge(results).state == at_least
    assert AtMost("", "error", "a", 0.5).judge(results).state == at_most


@pytest.mark.parametrize(
    ("values", "state"),
    [
        ([0.3, 0.5, 0.4], HOLDS),
        ([0.19, 0.2, 0.1], OPEN),
        ([0.5, 0.7, 0.9], OPEN),
        ([0.9, 0.91, 0.92], CONTRADICTED),
        ([0.1, 0.11, 0.12], CONTRADICTED),
        ([0.4], NOT_JUDGED),
    ],
)
def test_ranges(values: list[float], state: str) -> None:
    assert Between("", "error", "a", 0.2, 0.6).judge(results_with({"a": values})).state == state


@pytest.mark.parametrize(("error", "state"), [(0.0, HOLDS), (2.0, CONTRADICTED)])
def test_one_wrong_run_contradicts_a_theorem(error: float, state: str) -> None:
    results = results_with({"a": [0.0, error]})
    results.document["settings"]["a"]["values"]["allowed"] = [1.0, 1.0]
    assert Exact("", "a", "error", "allowed").judge(results).state == state


def test_a_theorem_does_not_hold_of_nan() -> None:
    results = results_with({"a": [float("nan")]})
    results.document["settings"]["a"]["values"]["allowed"] = [1.0]
    assert Exact("", "a", "error", "allowed").judge(results).state == CONTRADICTED


@pytest.mark.parametrize(
    ("kind", "budget", "state"),
    [("mnist", "default", CONTRADICTED), ("digits", "default", NOT_JUDGED),
     ("mnist", "quick", NOT_JUDGED), ("mnist", "full", CONTRADICTED)],
)  # fmt: skip
def test_only_the_sources_data_contradict(kind: str, budget: str, state: str) -> None:
    runs = {"a": [Measured({"error": float(value)}) for value in (1, 2, 3, 2)]}
    results = results_of(small_experiment(), runs, budget=budget, data=kind, seconds=0.0)
    assert [verdict.state for verdict in results.verdicts] == [state]


def small_experiment() -> Experiment:
    def run(job: Job) -> Measured:
        raise AssertionError("not run here")

    allowed = Budget(seeds=4, epochs=1)
    return Experiment(
        name="small", title="", question="", source="", data=("mnist",),
        settings=(Setting("a", "A"),), metrics=(), run=run, draw=lambda figure, results: None,
        quick=allowed, default=allowed, full=allowed, smaller="",
        checks=(AtMost("", "error", "a", 0.1),),
    )  # fmt: skip


# ---- all experiments ----------------------------------------------------------------------------


def test_every_file_is_in_the_list() -> None:
    files = {path.stem.replace("_", "-") for path in FOLDER.glob("[!_]*.py")}
    modules = {experiment.run.__module__.rpartition(".")[2] for experiment in EXPERIMENTS}
    assert {module.replace("_", "-") for module in modules} == files
    names = [experiment.name for experiment in EXPERIMENTS]
    assert len(set(names)) == len(names) and files <= set(names)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_what_an_experiment_names_exists(experiment: Experiment) -> None:
    settings = {setting.name for setting in experiment.settings}
    metrics = {metric.name for metric in experiment.metrics}
    measured = json.loads((RUNS / f"{experiment.name}.json").read_text())["settings"]
    assert len(settings) == len(experiment.settings)
    for setting, metric in experiment.published:
        assert setting in settings and metric in metrics
    for check in experiment.checks:
        named = {getattr(check, field, None) for field in ("setting", "better", "worse")} - {None}
        assert named and named <= settings
        assert getattr(check, "metric") in measured[named.pop()]["values"]  # noqa: B009
    assert experiment.default.seeds >= 3 and experiment.default.time and experiment.full.time
    assert set(experiment.data) <= set(data.WHERE)


def test_the_sources_figures_stand_beside_its_own_data_only() -> None:
    runs = {s.name: [Measured({"test_accuracy": 0.8})] * 2 for s in d2l.SETTINGS}
    for kind, shown in (("fashion-mnist", True), ("digits", False)):
        results = results_of(d2l.EXPERIMENT, runs, budget="quick", data=kind, seconds=0.0)
        header, rows = table_cells(d2l.EXPERIMENT, results)
        assert ("in the source" in header) == shown
        assert any(".84 to .86" in row for row in rows) == shown
        assert all(len(row) == len(header) for row in rows)


def test_a_run_that_diverged_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    runs = {
        s.name: [Measured({"test_accuracy": v}) for v in (0.8, float("nan"))] for s in d2l.SETTINGS
    }
    for measured in runs.values():
        for run in measured:
            run.curves = {
                name: [0.5, 0.4] for name in ("test_accuracy", "variance_1", "variance_2")
            }
    results = results_of(d2l.EXPERIMENT, runs, budget="default", data="fashion-mnist", seconds=0.0)
    assert [verdict.state for verdict in results.verdicts] == [NOT_JUDGED]
    print_report(report_console(), d2l.EXPERIMENT, results)
    assert "nan ± nan" in capsys.readouterr().out
    again = Results(json.loads(results.to_json()))
    assert digest_in(plots.picture(d2l.EXPERIMENT, again)) == digest(results.to_json())


def test_the_file_has_all_numbers_however_it_is_written() -> None:
    numbers = [0.1, -2e-9, 1e300, 3, float("inf"), 5e-324]
    settings = {"a": {"values": {"error": numbers, "none": []}, "curves": {"c": [numbers, [1.5]]}}}
    document = {"settings": settings, "verdicts": [], "data": "a [1,\n 2] b"}
    text = Results(document).to_json()
    assert json.loads(text) == document
    assert b"[0.1, -2e-09, 1e+300, 3, Infinity, 5e-324]" in text and text.count(b"\n") < 25
