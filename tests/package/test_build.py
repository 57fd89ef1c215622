"""setup.py's decisions, and what goes into the source distribution."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from support.paths import ROOT

CPU_TORCH = SimpleNamespace(__version__="2.13.0+cpu", version=SimpleNamespace(cuda=None))
CUDA_TORCH = SimpleNamespace(__version__="2.14.1", version=SimpleNamespace(cuda="13.0"))


@pytest.fixture
def setup_py(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """setup.py as a module, in an empty tree."""
    spec = importlib.util.spec_from_file_location("fused_dropout_setup", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.delenv("FUSED_DROPOUT_CUDA", raising=False)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")  # put back after a test, whatever setup.py sets
    return module


@pytest.mark.parametrize(
    ("torch", "home", "forced", "wanted", "said"),
    [
        (CPU_TORCH, "/cuda", "", False, "is a CPU build"),
        (CPU_TORCH, "/cuda", "1", True, "toolkit at /cuda"),
        (CUDA_TORCH, "/cuda", "", True, "toolkit at /cuda"),
        (CUDA_TORCH, None, "", False, "no CUDA toolkit found"),
        (CUDA_TORCH, "/cuda", "0", False, "FUSED_DROPOUT_CUDA=0"),
        (CUDA_TORCH, "/cuda", "1", True, "toolkit at /cuda"),
    ],
)
def test_cuda_gate(
    setup_py: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    torch: SimpleNamespace,
    home: str | None,
    forced: str,
    wanted: bool,
    said: str,
) -> None:
    monkeypatch.setenv("FUSED_DROPOUT_CUDA", forced)
    assert setup_py.want_cuda(torch, home) is wanted
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("torch", "home", "forced", "said"),
    [
        (CPU_TORCH, None, "1", "FUSED_DROPOUT_CUDA=1, but no CUDA toolkit found"),
        (CUDA_TORCH, "/cuda", "yes", "must be 0 or 1, got 'yes'"),
    ],
)
def test_cuda_gate_refuses(
    setup_py: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    torch: SimpleNamespace,
    home: str | None,
    forced: str,
    said: str,
) -> None:
    monkeypatch.setenv("FUSED_DROPOUT_CUDA", forced)
    with pytest.raises(SystemExit, match=said):
        setup_py.want_cuda(torch, home)


def test_the_user_s_architectures_are_left_alone(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6")
    assert setup_py.choose_architectures() == "8.6"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")
    assert setup_py.choose_architectures() == setup_py.DEFAULT_CUDA_ARCHITECTURES


@pytest.mark.parametrize(
    ("known", "chosen"),
    [
        (["7.5", "8.0", "9.0", "10.0", "12.1"], "8.0;9.0+PTX"),
        (["7.5", "8.0", "8.6"], "8.0+PTX"),
        (["9.0", "10.0"], "9.0+PTX"),
    ],
)
def test_default_architectures_are_those_that_nvcc_knows(
    setup_py: ModuleType, known: list[str], chosen: str
) -> None:
    assert setup_py.choose_architectures(known) == chosen
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == chosen  # where torch looks


def test_no_architecture_in_common(setup_py: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"none of 8\.0, 9\.0, only for 7\.5.*ARCH_LIST"):
        setup_py.choose_architectures(["7.5"])


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_nvcc_says_what_it_knows(setup_py: ModuleType, tmp_path: Path) -> None:
    assert setup_py.known_architectures(str(tmp_path)) == []
    program(tmp_path / "bin" / "nvcc", "echo compute_80; echo compute_90; echo compute_121")
    assert setup_py.known_architectures(str(tmp_path)) == ["8.0", "9.0", "12.1"]


@pytest.fixture
def no_toolkit_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_toolkit_named")
@pytest.mark.parametrize("name", ["CUDA_HOME", "CUDA_PATH"])
def test_a_toolkit_that_is_named_is_taken(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setenv("PATH", str(program(tmp_path / "bin" / "nvcc", "exit 1").parent))
    monkeypatch.setenv(name, "/chosen")
    assert setup_py.find_toolkit() == "/chosen"


@pytest.mark.usefixtures("no_toolkit_named")
def test_a_wrapped_nvcc_leads_to_its_toolkit(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrapper = program(tmp_path / "bin" / "nvcc", f"echo '#$ TOP={tmp_path}/cuda/bin/..' >&2")
    monkeypatch.setenv("PATH", str(wrapper.parent))
    (tmp_path / "cuda" / "bin").mkdir(parents=True)
    assert setup_py.find_toolkit() == str(tmp_path / "cuda")


@pytest.mark.usefixtures("no_toolkit_named")
def test_an_nvcc_in_its_toolkit_is_not_asked(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvcc = program(tmp_path / "bin" / "nvcc", "echo '#$ TOP=/elsewhere' >&2")
    headers(tmp_path / "include", "cuda_runtime.h")
    monkeypatch.setenv("PATH", str(nvcc.parent))
    assert setup_py.find_toolkit() == str(tmp_path)
    monkeypatch.setenv("PATH", "")
    assert setup_py.find_toolkit() is None


def headers(folder: Path, *names: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return str(folder)


def test_toolkit_version(setup_py: ModuleType, tmp_path: Path) -> None:
    program(tmp_path / "bin" / "nvcc", "echo 'Cuda compilation tools, release 13.0, V13.0.48'")
    assert setup_py.toolkit_version(str(tmp_path)) == "13.0"


def test_a_build_with_cuda_has_a_version_of_its_own(setup_py: ModuleType) -> None:
    assert setup_py.version_label("") == setup_py.VERSION
    assert setup_py.version_label("13.0") == f"{setup_py.VERSION}+cu130"


def test_setuptools_that_is_too_old_explains(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup_py.setuptools, "__version__", "77.0.3")
    setup_py.require_setuptools()
    monkeypatch.setattr(setup_py.setuptools, "__version__", "66.1.1")
    with pytest.raises(SystemExit, match=r"setuptools 77 or newer, found 66\.1\.1"):
        setup_py.require_setuptools()


def test_the_oldest_torch_is_the_target_of_the_stable_abi(setup_py: ModuleType) -> None:
    """As torch/headeronly/version.h writes a release: a byte for each number."""
    major, minor = setup_py.MINIMUM_TORCH
    assert int(setup_py.TARGET, 16) == major << 56 | minor << 48
    for flags in (setup_py.CXX_FLAGS, setup_py.NVCC_FLAGS):
        assert f"-DTORCH_TARGET_VERSION={setup_py.TARGET}" in flags


def test_the_commit_can_be_given(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSED_DROPOUT_COMMIT", raising=False)
    assert setup_py.commit() == "unknown"
    monkeypatch.setenv("FUSED_DROPOUT_COMMIT", "54e9602ca1dd")
    assert setup_py.commit() == "54e9602ca1dd"


def test_build_facts_header_is_left_alone_when_nothing_changed(setup_py: ModuleType) -> None:
    setup_py.write_build_facts("2.13.0", "", "")
    header = setup_py.ROOT / setup_py.GENERATED / "build_facts.h"
    before = header.stat().st_mtime_ns
    setup_py.write_build_facts("2.13.0", "", "")
    assert header.stat().st_mtime_ns == before
    setup_py.write_build_facts("2.13.0", "13.0", "9.0")
    assert '#define FUSED_DROPOUT_CUDA_ARCHITECTURES "9.0"' in header.read_text()


def test_the_kernels_of_all_ops_are_compiled_for_each_instruction_set(setup_py: ModuleType) -> None:
    ops = setup_py.ROOT / "csrc" / "cpu" / "simd" / "ops"
    ops.mkdir(parents=True)
    for name in ("zoneout.h", "dropout.h"):
        (ops / name).touch()
    setup_py.write_simd_ops()
    text = (setup_py.ROOT / setup_py.GENERATED / "simd_ops.h").read_text()
    assert text.splitlines()[2:] == [
        '#include "cpu/simd/ops/dropout.h"',
        '#include "cpu/simd/ops/zoneout.h"',
    ]


def test_no_flag_ties_the_binary_to_this_machine() -> None:
    for path in [ROOT / "setup.py", *(ROOT / "csrc").rglob("*")]:
        if path.is_file():
            text = path.read_text()
            assert "-march" not in text
            assert "fast_math" not in text.replace("-", "_").replace("ffast", "fast")


def test_sdist_holds_all_that_a_build_needs(tmp_path: Path) -> None:
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path)]
    command[3:3] = ["egg_info", "--egg-base", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    needed = [
        p for folder in ("csrc", "fused_dropout", "tests") for p in (ROOT / folder).rglob("*")
    ]
    suffixes = (".h", ".cpp", ".cu", ".cuh", ".map", ".py", ".txt", ".md")
    for path in needed:
        if path.suffix in suffixes and "__pycache__" not in path.parts:
            assert str(path.relative_to(ROOT)) in names
    assert {"setup.py", "pyproject.toml", "LICENSE", "Makefile"} <= names
