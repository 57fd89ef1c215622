"""What tests compile is built once, whoever asks for it, and not kept for ever."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.build_cache import KEPT, cached_build, fingerprint


def test_of_several_at_once_one_builds(tmp_path: Path) -> None:
    """Each locks a file that it has opened itself, as processes do."""
    built = []

    def build(folder: Path) -> None:
        built.append(folder)
        time.sleep(0.1)  # the others come meanwhile
        (folder / "program").write_text("made")

    def ask(_: int) -> str:
        return (cached_build(tmp_path / "new", "plain", "state", build) / "program").read_text()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == ["made"] * 4
    assert len(built) == 1


def test_half_a_build_is_not_kept(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise RuntimeError("the compiler stopped")

    with pytest.raises(RuntimeError, match="the compiler stopped"):
        cached_build(tmp_path, "plain", "state", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["plain.lock"]
    whole = cached_build(tmp_path, "plain", "state", lambda folder: (folder / "whole").touch())
    assert [path.name for path in whole.iterdir()] == ["whole"]


def test_the_newest_builds_of_a_name_are_kept(tmp_path: Path) -> None:
    names = ("plain", "asan")
    for age, state in enumerate("fedcba"):  # in another order than that of their names
        for name in names:
            target = cached_build(tmp_path, name, state, lambda folder: None)
            os.utime(target, (age, age))
    found = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert found == {f"{name}-{state}" for name in names for state in "fedcba"[-KEPT:]}


def test_a_fingerprint_is_of_facts_names_and_contents(tmp_path: Path) -> None:
    file, other = tmp_path / "a.h", tmp_path / "b.h"
    file.write_text("one")
    other.write_text("one")
    before = fingerprint(("-O2",), [file, other])
    assert before == fingerprint(("-O2",), [other, file])
    assert before != fingerprint(("-O3",), [file, other])
    assert before != fingerprint(("-O2",), [file])
    other.write_text("two")
    assert before != fingerprint(("-O2",), [file, other])
