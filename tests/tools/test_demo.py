"""`fused-dropout demo`: the training, the printed table, the picture, and bad arguments."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console
from support.idx_files import write_idx_folder

from fused_dropout._tools.baselines import NaiveDropConnectLinear
from fused_dropout._tools.cli import main
from fused_dropout._tools.datasets import Dataset, load_digits, subset
from fused_dropout._tools.demo import training as training
from fused_dropout._tools.demo.progress import train_with_progress
from fused_dropout._tools.demo.training import SameMaskNaiveLinear, Settings
from fused_dropout._tools.pictures import digest, digest_in
from fused_dropout.nn import DropConnectLinear

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

SETTINGS = Settings(hidden=24, p=0.5, batch_size=32, epochs=2, lr=0.1, seed=3, mask_seed=4)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return training.standardised(load_digits())


@pytest.fixture(autouse=True)
def quick_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "_TIMING_SECONDS", {"naive": 0.01, "fused": 0.01})


def demo(*arguments: str | Path) -> int:
    """The exit status of `fused-dropout demo`."""
    try:
        return main(["demo", *map(str, arguments)])
    except SystemExit as exit:
        assert isinstance(exit.code, int)
        return exit.code


def table_row(output: str, label: str) -> list[str]:
    """The cells of the table's row that starts with `label`."""
    rows = [line.split("│")[1:-1] for line in output.splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in row] for row in rows]
    return next(row[1:] for row in cells if row[0].startswith(label))


def assert_picture(path: Path) -> None:
    from matplotlib.image import imread

    height, width, channels = imread(path).shape
    assert width > 1000 and height > 300 and channels == 4


def test_demo_on_digits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "picture.png"
    assert demo("--hidden", "16", "--epochs", "1", "--out", out) == 0
    output = capsys.readouterr().out
    assert "64-16-16-10" in output and "p = 0.5" in output
    for label in ("DropConnect layer-step", "training step", "epoch of 898 (7 steps)"):
        naive, fused, ratio = table_row(output, label)
        assert naive.endswith("s") and fused.endswith("s") and ratio.endswith("x faster")
    assert len(table_row(output, "peak extra memory")) == 3
    naive, fused, difference = table_row(output, "accuracy, 1 epochs of 898")
    assert naive == fused and naive.endswith(" %") and difference == "+0.00 points"
    text = " ".join(output.split())
    assert "and the same masks" in text and "masks from torch.bernoulli" in text
    assert "--subset" not in output
    assert_picture(out)


def test_demo_on_idx_files_says_that_it_uses_a_subset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_idx_folder(tmp_path, train=40, test=20, size=6)
    out = tmp_path / "picture.png"
    status = demo(
        *("--data", tmp_path, "--subset", "16", "--batch-size", "8", "--hidden", "8"),
        *("--epochs", "2", "--seeds", "2", "--p", "0.3", "--own-masks", "--out", out),
    )
    output = " ".join(capsys.readouterr().out.split())
    assert status == 0
    assert "both networks are trained on the same 16 examples (--subset)" in output
    assert "for 2 epochs of all 40 examples" in output
    assert "epoch of 16 (2 steps)" in output
    assert "epoch of 40 (5 steps)" in output
    assert "naive, seed 1: step 4/4" in output and "fused, seed 1: step 4/4" in output
    assert "fused, all examples: step 10/10" in output
    assert "mean of 2 seeds" in output and "masks of its own from torch.bernoulli" in output
    assert_picture(out)


def test_the_json_file_has_what_the_table_and_the_picture_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_idx_folder(tmp_path, train=40, test=20, size=6)
    out, figures = tmp_path / "picture.png", tmp_path / "figures.json"
    status = demo(
        *("--data", tmp_path, "--subset", "16", "--batch-size", "8", "--hidden", "8"),
        *("--epochs", "2", "--seeds", "2", "--threads", "1", "--out", out, "--json", figures),
    )
    output = capsys.readouterr().out
    assert status == 0 and f"Figures: {figures}" in output
    assert digest_in(out.read_bytes()) == digest(figures.read_bytes())

    document = json.loads(figures.read_text())
    keys = {"command", "date", "commit", "versions", "device", "variables", "results"}
    assert set(document) == keys and document["device"]["threads"] == 1
    (result,) = document["results"]
    assert (result["train_examples"], result["trained_examples"]) == (40, 16)
    assert (result["features"], result["test_examples"]) == (36, 20)
    assert result["settings"]["hidden"] == 8 and result["settings"]["epochs"] == 2
    assert len(result["accuracies_with_other_masks"]) == 4
    assert len(result["fused_on_all_examples"]["losses"]) == 2 * 5

    naive, fused = result["rows"]
    assert (naive["name"], fused["name"]) == ("naive", "fused")
    for row in (naive, fused):
        assert [len(history["losses"]) for history in row["histories"]] == [4, 4]
        assert row["layer_step"] > 0 and row["step"] > 0
    printed = table_row(output, "accuracy, 2 epochs of 16")
    assert printed[:2] == [f"{row['accuracy']:.2f} %" for row in (naive, fused)]
    for place, row in enumerate((naive, fused)):
        number, unit = table_row(output, "training step")[place].split()
        assert float(number) == float(f"{row['step'] * {'ms': 1e3, 's': 1.0}[unit]:.3g}")


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_same_seeds_give_the_same_masks_and_the_same_training(digits: Dataset, p: float) -> None:
    settings = replace(SETTINGS, p=p)
    naive = training.train(SameMaskNaiveLinear, digits, settings)
    fused = training.train(DropConnectLinear, digits, settings)
    assert len(fused.losses) == settings.steps(digits) == 2 * (898 // 32)
    torch.testing.assert_close(fused.losses, naive.losses, rtol=1e-4, atol=1e-5)
    assert fused.evaluated_steps == naive.evaluated_steps
    assert fused.evaluated_steps[-1] == settings.steps(digits)


def test_other_masks_give_another_training(digits: Dataset) -> None:
    fused = training.train(DropConnectLinear, digits, SETTINGS)
    others = [
        training.train(DropConnectLinear, digits, replace(SETTINGS, mask_seed=5)),
        training.train(NaiveDropConnectLinear, digits, SETTINGS),
    ]
    for other in others:
        assert max(abs(a - b) for a, b in zip(fused.losses, other.losses, strict=True)) > 1e-2
    again = training.train(DropConnectLinear, digits, SETTINGS)
    assert again.losses == fused.losses


def test_the_fused_layer_learns_the_digits(digits: Dataset) -> None:
    settings = replace(SETTINGS, hidden=128, epochs=6)
    assert training.train(DropConnectLinear, digits, settings).accuracies[-1] > 93


def test_subset_is_drawn_by_seed_and_keeps_the_test_set(digits: Dataset) -> None:
    part = subset(digits, 100, seed=1)
    assert part.train_x.shape == (100, 64) and part.test_x is digits.test_x
    assert torch.equal(part.train_x, subset(digits, 100, seed=1).train_x)
    assert not torch.equal(part.train_x, subset(digits, 100, seed=2).train_x)
    assert subset(digits, len(digits.train_x), seed=1) is digits


@pytest.mark.parametrize("steps", [1, 2, 3, 11, 60])
def test_learning_rate_rises_once_and_falls_towards_zero(steps: int) -> None:
    factors = [training._lr_factor(step, steps) for step in range(1, steps + 1)]
    peak = factors.index(max(factors))
    assert min(factors) > 0 and 0.5 < max(factors) <= 1
    assert factors[: peak + 1] == sorted(factors[: peak + 1])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert steps < 11 or factors[-1] < 0.15


def test_progress_on_a_terminal_and_in_a_log(digits: Dataset) -> None:
    for is_terminal, expected in ((True, "56/56"), (False, "ours: step 56/56, loss ")):
        stream = io.StringIO()
        console = Console(file=stream, force_terminal=is_terminal, width=140)
        history = train_with_progress(console, "ours", DropConnectLinear, digits, SETTINGS)
        assert len(history.losses) == 56
        assert expected in stream.getvalue()
        assert f"{history.accuracies[-1]:.1f} %" in stream.getvalue()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--p", "1.5"], "--p/-p: must be a number in [0, 1], got '1.5'"),
        (["--p", "nan"], "must be a number in [0, 1]"),
        (["--epochs", "0"], "--epochs: must be an integer from 1 to 2^31 - 1, got '0'"),
        (["--hidden", "-3"], "--hidden"),
        (["--batch-size", "x"], "--batch-size"),
        (["--batch-size", "899"], "--batch-size must be at most the 898 examples"),
        (["--lr", "0"], "--lr: must be a number > 0, got '0'"),
        (["--lr", "inf"], "--lr"),
        (["--seed", "-1"], "--seed"),
        (["--seeds", "0"], "--seeds"),
        (["--threads", "0"], "--threads"),
        (["--threads", "99999999999"], "--threads: must be an integer from 1 to 2^31 - 1"),
        (["--subset", "2000"], "--subset must be at most 898, got 2000"),
        (["--subset", "100"], "--batch-size must be at most the 100 examples"),
        (["--data", "nowhere"], "data folder nowhere does not exist"),
        (["--data", "."], "train-images-idx3-ubyte (or train-images-idx3-ubyte.gz) is missing"),
        (["--out", "picture.jpg"], "--out must end in .png, got picture.jpg"),
        (["--out", "nowhere/picture.png"], "cannot write --out nowhere/picture.png: No such file"),
        (["--json", "nowhere/x.json"], "cannot write --json nowhere/x.json: No such file"),
        (["--out", "/proc/x.png"], "cannot write --out /proc/x.png: No such file"),
        (["--hidden", "100000"], "the naive network needs about"),
        (["--hidden", "2000000", "--p", "0"], "the naive network needs about"),
    ],
)
def test_bad_arguments_give_one_line_and_status_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert demo(*arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1
    assert captured.out == "" and not list(tmp_path.iterdir())


def test_a_failed_training_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, figures = tmp_path / "picture.png", tmp_path / "figures.json"

    def fail(*arguments: object) -> object:
        assert out.exists() and figures.exists()
        raise RuntimeError("training failed")

    monkeypatch.setattr("fused_dropout._tools.demo.command._measure_and_train", fail)
    with pytest.raises(RuntimeError, match="training failed"):
        demo("--hidden", "8", "--out", out, "--json", figures)
    assert not out.exists() and not figures.exists()


def test_missing_matplotlib_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "fused_dropout._tools.demo.plots", raising=False)
    monkeypatch.delattr("fused_dropout._tools.demo.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert demo("--hidden", "8") == 2
    assert "pip install 'fused_dropout[demo]'" in capsys.readouterr().err
