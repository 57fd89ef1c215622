"""setup.py's decisions, and what goes into the source distribution."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent
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
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
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
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    assert setup_py.choose_architectures() == setup_py.DEFAULT_CUDA_ARCHITECTURES


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
