"""The pages: their code runs, and what they name, link to and show is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.documents import DOCS, PAGES, README, anchors_of, code_in, python_blocks, run_blocks
from support.paths import ROOT

import fused_dropout
from fused_dropout._tools import cli
from fused_dropout._tools.pages.markdown import with_tables
from fused_dropout._tools.pages.performance import PICTURE, picture_sources, write_performance
from fused_dropout._tools.pages.performance_tables import performance_tables
from fused_dropout._tools.pictures import digest, digest_in

RESULTS = ROOT / "bench" / "results"
PICTURES = sorted((DOCS / "pictures").glob("*.png"))
MAKEFILE = (ROOT / "Makefile").read_text()
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@pytest.mark.parametrize(
    "page", [page for page in PAGES if python_blocks(page)], ids=lambda page: page.name
)
def test_code_runs(page: Path) -> None:
    with torch.random.fork_rng():
        run_blocks(page)


def test_raw_operators_run_as_documented() -> None:
    names = run_blocks(DOCS / "operators.md")
    x, output = names["x"], names["kept_twofold"]
    assert torch.equal(output, fused_dropout.functional.dropout(x, 0.5, seed=0))
    assert torch.equal(x.grad, torch.where(output == 0, 0.0, 2.0))


def test_ops_and_modules_of_the_table_exist() -> None:
    rows = re.findall(r"^\| (`.*?) \| (.*?) \|", (DOCS / "ops.md").read_text(), re.MULTILINE)
    public = {*vars(fused_dropout), *fused_dropout.functional.__all__}
    functions = {name for cell, _ in rows for name in re.findall(r"`(?:functional\.)?(\w+)`", cell)}
    assert set(fused_dropout.functional.__all__) - functions == {"linear_drop_rates"}
    modules = [name for _, cell in rows for name in re.findall(r"`nn\.(\w+)`", cell)]
    assert len(modules) > 10 and set(modules) <= set(fused_dropout.nn.__all__)
    arguments = {"p", "training", "generator", "seed", "rng_state", "convention"}
    arguments |= {"broadcast_dims", "mask", "mask_storage"}
    assert functions <= public | arguments


def links_of(page: Path) -> Iterator[tuple[Path, str]]:
    """The file that each relative link leads to, and what stands after its #."""
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" not in link:
            path, _, anchor = link.partition("#")
            yield (page.parent / path if path else page), anchor


@each_page
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for path, anchor in links_of(page):
        assert path.is_file(), path
        assert not anchor or anchor in anchors_of(path), f"{path}#{anchor}"


def test_every_page_is_in_the_index() -> None:
    linked = {path.resolve() for path, _ in links_of(DOCS / "README.md")}
    assert {*DOCS.glob("*.md")} - {DOCS / "README.md"} <= linked


@each_page
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.compile(r"(?<![\w./<-])((?:bench|csrc|docs|fused_dropout|tests)/[\w./-]*\w)")
    for code in code_in(page):
        for path in named.findall(code):
            assert (ROOT / path).exists(), path


@each_page
def test_commands_and_their_options_exist(page: Path) -> None:
    for code in code_in(page):
        for name, rest in re.findall(r"\bfused-dropout ([a-z-]+)([^`#]*)", code):
            assert name in cli._COMMANDS, code
            known = option_names(name)
            assert set(re.findall(r"(?<!\S)\[?(--[a-z-]+)", rest)) <= known, code


def option_names(command: str) -> set[str]:
    """The options of a command of fused-dropout."""
    subparsers = cli._build_parser([command])._subparsers
    assert subparsers is not None
    (action,) = subparsers._group_actions
    assert isinstance(action.choices, dict)
    return {name for option in action.choices[command]._actions for name in option.option_strings}


@each_page
def test_targets_and_variables_of_make_exist(page: Path) -> None:
    phony = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    targets = {name for line in phony for name in line.split()} - {"FORCE"}
    assert {"demo", "test"} <= targets
    for code in code_in(page):
        for words in re.findall(r"(?:^|[ ;])make ([^`#]*)", code):
            wanted = re.findall(r"^(?:[A-Z_]+=\S+ )*([a-z][\w-]*)", words)
            assert set(wanted) <= targets, code
            for variable in re.findall(r"\b([A-Z_]+)=", words):
                assert re.search(rf"^{variable}\b|\$\({variable}\b", MAKEFILE, re.MULTILINE) or (
                    f"#   {variable}=" in MAKEFILE
                ), code


def digests_of_results() -> set[str]:
    """Of every JSON file that a picture may show, and of those that one shows together."""
    files = [*DOCS.rglob("*.json"), *RESULTS.glob("*.json")]
    together = b"".join(path.read_bytes() for path in picture_sources(RESULTS))
    return {digest(path.read_bytes()) for path in files} | {digest(together)}


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_a_picture_shows_a_result_as_it_is_now(picture: Path) -> None:
    assert digest_in(picture.read_bytes()) in digests_of_results()


def test_the_front_page_shows_the_demo_and_the_performance() -> None:
    shown = {path.resolve() for path, _ in links_of(README) if path.suffix == ".png"}
    assert {DOCS / "pictures" / name for name in ("demo.png", PICTURE)} <= shown
    for name in ("demo", "performance"):
        picture = (DOCS / "pictures" / f"{name}.png").read_bytes()
        sources = [DOCS / "pictures" / "demo.json"] if name == "demo" else picture_sources(RESULTS)
        assert digest_in(picture) == digest(b"".join(path.read_bytes() for path in sources))


def test_tables_are_those_of_the_results() -> None:
    page = (DOCS / "performance.md").read_text()
    again = with_tables(page, performance_tables(RESULTS))
    assert page == again, "run python -m fused_dropout._tools.pages docs"


def test_the_performance_page_is_written_whole(tmp_path: Path) -> None:
    """Over a page whose tables are out of date, with nothing else changed."""
    pytest.importorskip("matplotlib")
    docs = tmp_path / "docs"
    (docs / "pictures").mkdir(parents=True)
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "results").symlink_to(RESULTS)
    page = (DOCS / "performance.md").read_text()
    (docs / "performance.md").write_text(page.replace(" faster |", " slower |"))
    assert (docs / "performance.md").read_text() != page
    write_performance(docs)
    assert (docs / "performance.md").read_text() == page
    picture = (docs / "pictures" / PICTURE).read_bytes()
    assert digest_in(picture) == digest_in((DOCS / "pictures" / PICTURE).read_bytes())


def test_a_place_without_a_table_is_an_error() -> None:
    page = "a\n<!-- table: x -->\nold\n<!-- /table -->\nb\n"
    assert with_tables(page, {"x": ["| new |"]}) == (
        "a\n<!-- table: x -->\n\n| new |\n\n<!-- /table -->\nb\n"
    )
    for tables in ({}, {"y": ["| new |"]}, {"x": ["| new |"], "y": ["| new |"]}):
        with pytest.raises(ValueError, match="places for"):
            with_tables(page, tables)
    with pytest.raises(ValueError, match="no end"):
        with_tables(page.replace("<!-- /table -->", ""), {"x": ["| new |"]})


def test_the_citation_is_of_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {fused_dropout.__version__}\n" in citation
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert f"\n## [{fused_dropout.__version__}]" in changes
