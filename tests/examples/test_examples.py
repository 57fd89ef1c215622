"""Every example runs with --quick, saves what it promises, and is listed in examples/README.md."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest
from support.examples import EXAMPLES, files_of, run_example
from support.paths import ROOT

each_example = pytest.mark.parametrize("name", [path.stem for path in EXAMPLES])


@each_example
def test_a_quick_run_saves_its_picture(name: str, tmp_path: Path) -> None:
    done = run_example(name, "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert ".png" in files_of(tmp_path)
    assert str(tmp_path) in done.stdout.replace("\n", ""), "it says where the picture is"


@each_example
def test_an_unknown_option_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run in this process, which has imported torch."""
    script = str(ROOT / "examples" / f"{name}.py")
    monkeypatch.setattr(sys, "argv", [script, "--no-such-option"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(script, run_name="__main__")
    assert end.value.code == 2 and "--no-such-option" in capsys.readouterr().err


def test_the_readme_lists_every_example() -> None:
    page = (ROOT / "examples" / "README.md").read_text()
    listed = re.findall(r"^\| \[(\w+\.py)\]\(\1\) \|", page, re.MULTILINE)
    assert sorted(listed) == [path.name for path in EXAMPLES]
