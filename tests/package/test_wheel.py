"""The scripts of bench/wheel, and what the compiled extension asks of a system; no long builds."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from support.bench_scripts import script
from support.paths import ROOT

from fused_dropout._core import extension

# What csrc/older_systems.cpp defines, by the names of the linker.
YOUNG = re.compile(
    r"__libc_single_threaded|_ZSt28__throw_bad_array_new_lengthv|(exp|log)@GLIBC_2\.29"
    r"|\w+basic_o?stringstream\w+C[12]Ev|\w+basic_stringbuf\w+3strEv"
)
READELF = """
 0x0000000000000001 (NEEDED)             Shared library: [libtorch_cpu.so]
 0x0000000000000001 (NEEDED)             Shared library: [libstdc++.so.6]
 0x0000000000000001 (NEEDED)             Shared library: [ld-linux-x86-64.so.2]
  0x0030:   Name: GLIBC_2.9  Flags: none  Version: 22
  0x0060:   Name: GLIBC_2.14  Flags: none  Version: 13
  0x0160:   Name: GLIBCXX_3.4  Flags: none  Version: 3
"""
RUNPATH = " 0x000000000000001d (RUNPATH)            Library runpath: [/opt/torch/lib]\n"


@pytest.fixture(scope="module")
def scripts() -> Iterator[dict[str, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "bench" / "wheel")  # one of them imports another
        yield {name: script(f"wheel/{name}") for name in ("binary", "build", "check")}


def test_needs_of_a_binary(scripts: dict[str, ModuleType]) -> None:
    found = scripts["binary"].parsed(READELF)
    assert str(found) == "libtorch_cpu.so, GLIBC 2.14, GLIBCXX 3.4"
    assert found.objections() == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (READELF.replace("torch_cpu", "c10"), "needs libc10.so"),
        (READELF.replace("torch_cpu", "torch_python"), "needs libtorch_python.so"),
        (READELF + RUNPATH, "looks for libraries in /opt/torch/lib"),
    ],
)
def test_a_binary_that_is_not_portable(
    scripts: dict[str, ModuleType], text: str, said: str
) -> None:
    (objection,) = scripts["binary"].parsed(text).objections()
    assert said in objection


def symbols(kind: str) -> list[str]:
    """The names that the extension shows ("defined") or asks for ("undefined")."""
    command = ["nm", "-D", f"--{kind}-only", str(extension.load().__file__)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return re.findall(r"^[ \da-f]* [A-Za-z] (\S+)$", text, re.MULTILINE)


def test_the_extension_shows_nothing_but_what_python_calls() -> None:
    assert symbols("defined") == ["PyInit__C"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="csrc/older_systems.cpp: x86-64 only")
def test_the_extension_asks_for_nothing_that_it_defines_for_older_systems() -> None:
    asked = symbols("undefined")
    assert any(name.startswith("memcpy") for name in asked)
    assert [name for name in asked if YOUNG.match(name)] == []


def test_the_cpu_wheel_of_a_python_is_found(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    find = scripts["check"].cpu_wheel
    wheel = tmp_path / "fused_dropout-0.1.0-cp311-cp311-manylinux_2_28_x86_64.whl"
    wheel.touch()
    (tmp_path / wheel.name.replace("0.1.0", "0.1.0+cu130")).touch()
    (tmp_path / wheel.name.replace("cp311", "cp312")).touch()
    assert find(tmp_path, "cp311") == wheel
    with pytest.raises(SystemExit, match="for cp310, found none: make wheel"):
        find(tmp_path, "cp310")
    (tmp_path / wheel.name.replace("2_28", "2_34")).touch()
    with pytest.raises(SystemExit, match=r"one CPU wheel for cp311, found .*2_34"):
        find(tmp_path, "cp311")


@pytest.mark.parametrize(
    ("forced", "toolkit", "kinds"),
    [
        ("", "/cuda", ["cpu", "cuda"]),
        ("", "", ["cpu"]),
        ("0", "/cuda", ["cpu"]),
        ("1", "", ["cpu", "cuda"]),
    ],
)
def test_which_wheels_are_built(
    scripts: dict[str, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    forced: str,
    toolkit: str,
    kinds: list[str],
) -> None:
    monkeypatch.setenv("FUSED_DROPOUT_CUDA", forced)
    monkeypatch.setenv("CUDA_HOME", toolkit)
    monkeypatch.setenv("PATH", "")
    assert scripts["build"].kinds() == kinds


def test_a_forced_cuda_wheel_is_0_or_1(
    scripts: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUSED_DROPOUT_CUDA", "yes")
    with pytest.raises(SystemExit, match="must be 0 or 1, got 'yes'"):
        scripts["build"].kinds()


def test_a_wheel_in_a_line(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    wheel = tmp_path / "fused_dropout-0.1.0+cu130-cp311-cp311-manylinux_2_28_x86_64.whl"
    wheel.write_bytes(bytes(3 * 2**19))
    assert scripts["build"].line(wheel, scripts["binary"].parsed(READELF)) == (
        f"{wheel.name}: 1.5 MiB, tag cp311-cp311-manylinux_2_28_x86_64, "
        "needs libtorch_cpu.so, GLIBC 2.14, GLIBCXX 3.4"
    )


def test_a_wheel_holds_one_library(scripts: dict[str, ModuleType], tmp_path: Path) -> None:
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("fused_dropout/_C.cpython-311-x86_64-linux-gnu.so", "binary")
    assert scripts["build"].unpacked_extension(wheel, tmp_path).read_text() == "binary"
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("fused_dropout.libs/libgomp-1f.so.1", "")
    with pytest.raises(SystemExit, match=r"_C\..*libgomp"):
        scripts["build"].unpacked_extension(wheel, tmp_path)


@pytest.mark.skipif(not shutil.which("make"), reason="needs GNU make")
@pytest.mark.parametrize(
    ("target", "commands"),
    [
        (("wheel", "PYTHON=python3"), ["build.py --python python3"]),
        (
            ("wheel-check", "PYTHON=python3", "PYTHONS=/a/python /b/python"),
            ["build.py --python python3", "check.py --python $python"],
        ),
    ],
)
def test_the_make_targets_call_the_scripts(target: tuple[str, ...], commands: list[str]) -> None:
    done = subprocess.run(["make", "-n", *target], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"bench/wheel/(\w+\.py --python \S+)", done.stdout) == commands
    assert "torch==" not in done.stdout, "interpreters that are named are used as they are"


@pytest.mark.skipif(not shutil.which("make"), reason="needs GNU make")
def test_make_has_an_environment_for_each_release_of_torch() -> None:
    command = ["make", "-n", "wheel-check", "PYTHON=python3", "CHECKED_TORCHES=2.11.0 2.16.0"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert re.findall(r"install .*'(torch==.*?)'", said) == ["torch==2.11.0", "torch==2.16.0"]
    assert "in .venv-torch-2.11.0/bin/python .venv-torch-2.16.0/bin/python;" in said
