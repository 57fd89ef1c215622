"""The list of an op's files in csrc/README.md is the list of the files that every op has."""

from __future__ import annotations

import re

import pytest
from support.paths import ROOT

AT_MOST = 18
RECIPE = (ROOT / "csrc" / "README.md").read_text().partition("## Add an op\n")[2]
STEPS = RECIPE.partition("\nThen ")[0]
NAMED = re.findall(r"(?<=[|,*] )\*?`([\w/<>.]+)`", STEPS)
OWN = [path for path in NAMED if "<op>" in path]
OPS = sorted(path.stem for path in (ROOT / "csrc" / "cpu" / "simd" / "ops").glob("*.h"))
REFERENCE, TABLE = "fused_dropout/reference/_<op>.py", "fused_dropout/_tools/table/<op>.py"
EMULATED, KERNEL_TESTS = "tests/cuda_on_cpu/<op>.cu", "tests/kernels/test_cuda_<op>.py"
OF_TORCH, BENCH = "fused_dropout/_ops/<op>.py", "fused_dropout/_tools/bench/ops/<op>.py"
FUNCTION, MODULE = "fused_dropout/functional/_<op>.py", "fused_dropout/nn/_<op>.py"

# Where an op has no file of its own: the file that it shares with others; None where it needs none.
NOISE = {
    REFERENCE: "fused_dropout/reference/_noise.py",
    EMULATED: "tests/cuda_on_cpu/noise.cu",
    KERNEL_TESTS: "tests/kernels/test_cuda_noise.py",
}
DRAWN = {
    FUNCTION: "fused_dropout/_masks.py",
    MODULE: None,
    OF_TORCH: "fused_dropout/_ops/masks_and_noise.py",
    TABLE: "fused_dropout/_tools/table/masks_and_noise.py",
    BENCH: "fused_dropout/_tools/bench/ops/masks_and_noise.py",
}
ELSEWHERE: dict[str, dict[str, str | None]] = {
    "gaussian_dropout": NOISE,
    "gaussian_noise": NOISE,
    "concrete_dropout": NOISE,
    "dropconnect_moments": {MODULE: None},
    "mask_weight": {MODULE: None},
    "noise": {**NOISE, **DRAWN},
    "mask": {
        **DRAWN,
        REFERENCE: "fused_dropout/reference/_masks.py",
        EMULATED: "tests/cuda_on_cpu/library.cu",
    },
}


def test_the_recipe_is_short() -> None:
    assert len(set(NAMED)) == len(NAMED) <= AT_MOST
    for path in set(NAMED) - set(OWN):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("op", OPS)
def test_an_op_has_the_files_of_the_recipe(op: str) -> None:
    elsewhere = ELSEWHERE.get(op, {})
    for path in OWN:
        found = (ROOT / path.replace("<op>", op)).is_file()
        if path not in elsewhere:
            assert found, path.replace("<op>", op)
        elif (instead := elsewhere[path]) is not None:
            assert (ROOT / instead).is_file(), instead


def test_files_named_after_an_op_are_in_the_recipe() -> None:
    """In its folders. `<op>_<part>` is a part of a file that would be too long."""
    names = "|".join(sorted(OPS, key=len, reverse=True))
    named_after = re.compile(rf"((?:_|test_|test_cuda_)?)({names})(?:_\w+)?(\.\w+)")
    missing = []
    for folder in sorted({ROOT / path.rpartition("/")[0] for path in OWN}):
        for path in folder.iterdir():
            match = named_after.fullmatch(path.name)
            place = folder.relative_to(ROOT)
            if match and f"{place}/{match[1]}<op>{match[3]}" not in OWN:
                missing.append(str(path.relative_to(ROOT)))
    assert missing == []
