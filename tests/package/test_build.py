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
    """setup.py as a module, in a tree that has CUDA sources."""
    spec = importlib.util.spec_from_file_location("fused_dropout_setup", ROOT / "setup.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "csrc" / "cuda").mkdir(parents=True)
    (tmp_path / "csrc" / "cuda" / "mask_cuda.cu").touch()
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.delenv("FUSED_DROPOUT_CUDA", raising=False)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "")  # put back after a test, whatever setup.py sets
    return module


@pytest.mark.parametrize(
    ("torch", "home", "forced", "wanted", "said"),
    [
        (CPU_TORCH, None, "", False, "is a CPU build"),
        (CUDA_TORCH, "/cuda", "", True, "toolkit at /cuda"),
        (CUDA_TORCH, None, "", False, "no CUDA toolkit found"),
        (CUDA_TORCH, "/cuda", "0", False, "FUSED_DROPOUT_CUDA=0"),
        (CUDA_TORCH, "/cuda", "1", True, "torch for CUDA 13.0"),
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
        (CPU_TORCH, None, "1", "FUSED_DROPOUT_CUDA=1, but torch 2.13.0.cpu is a CPU build"),
        (CUDA_TORCH, None, "1", "no CUDA toolkit found"),
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


def test_a_wrapped_nvcc_leads_to_its_toolkit(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrapper = program(tmp_path / "bin" / "nvcc", f"echo '#$ TOP={tmp_path}/cuda/bin/..' >&2")
    monkeypatch.setenv("PATH", str(wrapper.parent))
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("CUDA_HOME", "/chosen")
    setup_py.find_toolkit()
    assert os.environ["CUDA_HOME"] == "/chosen"
    monkeypatch.delenv("CUDA_HOME")
    (tmp_path / "cuda" / "bin").mkdir(parents=True)
    setup_py.find_toolkit()
    assert os.environ["CUDA_HOME"] == str(tmp_path / "cuda")


def test_an_nvcc_in_its_toolkit_is_left_to_torch(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvcc = program(tmp_path / "bin" / "nvcc", "echo '#$ TOP=/elsewhere' >&2")
    headers(tmp_path / "include", "cuda_runtime.h")
    monkeypatch.setenv("PATH", str(nvcc.parent))
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_PATH", raising=False)
    setup_py.find_toolkit()
    assert "CUDA_HOME" not in os.environ


def headers(folder: Path, *names: str) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return str(folder)


def test_cuda_headers_of_pip_packages(
    setup_py: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    toolkit, cu13, cublas = tmp_path / "toolkit", tmp_path / "cu13", tmp_path / "cublas"
    headers(toolkit / "include", "cusparse.h")
    headers(cu13, *setup_py.LIBRARY_HEADERS)
    headers(cublas, "cublas_v2.h", "cublasLt.h")
    assert setup_py.library_includes(str(toolkit), [cublas, cu13]) == [str(cublas), str(cu13)]
    assert f"{cu13} (the toolkit lacks them)" in capsys.readouterr().out
    assert setup_py.library_includes(str(toolkit), [cublas]) == [str(cublas)]
    assert "cusolverDn.h not found" in capsys.readouterr().out
    headers(toolkit / "include", *setup_py.LIBRARY_HEADERS)
    assert setup_py.library_includes(str(toolkit), [cublas, cu13]) == []
    assert "the toolkit's" in capsys.readouterr().out


def test_folders_of_pip_packages(
    setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    cublas = headers(tmp_path / "cublas" / "include")
    cusparse = headers(tmp_path / "cusparse" / "include")
    assert [str(p) for p in setup_py.package_includes("12.8")] == [cublas, cusparse]
    cu13 = headers(tmp_path / "cu13" / "include")
    assert [str(p) for p in setup_py.package_includes("13.0")] == [cu13]


def test_the_commit_can_be_given(setup_py: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FUSED_DROPOUT_COMMIT", raising=False)
    assert setup_py.commit() == "unknown"
    monkeypatch.setenv("FUSED_DROPOUT_COMMIT", "54e9602ca1dd")
    assert setup_py.commit() == "54e9602ca1dd"


def test_build_facts_header_is_left_alone_when_nothing_changed(setup_py: ModuleType) -> None:
    setup_py.write_build_facts("", "")
    header = setup_py.ROOT / setup_py.GENERATED / "build_facts.h"
    before = header.stat().st_mtime_ns
    setup_py.write_build_facts("", "")
    assert header.stat().st_mtime_ns == before
    setup_py.write_build_facts("13.0", "9.0")
    assert '#define FUSED_DROPOUT_CUDA_ARCHITECTURES "9.0"' in header.read_text()


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
    suffixes = (".h", ".cpp", ".cu", ".cuh", ".py", ".txt", ".md")
    for path in needed:
        if path.suffix in suffixes and "__pycache__" not in path.parts:
            assert str(path.relative_to(ROOT)) in names
    assert {"setup.py", "pyproject.toml", "LICENSE", "Makefile"} <= names
