"""How the kernel tests' worker is compiled for GPUs, and which tests run where; no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT

from cuda_on_cpu import build


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("said", "architectures"),
    [("9.0\n", ("90",)), ("12.0\n9.0\n9.0\n", ("120", "90")), ("No devices were found\n", ())],
)
def test_gpus_are_found_by_nvidia_smi(
    said: str, architectures: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "nvidia-smi", f"printf '{said}'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(build, "gpu_architectures", build.gpu_architectures.__wrapped__)
    monkeypatch.setattr(build, "cuda_tool", lambda name: f"/cuda/{name}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert build.gpu_architectures() == architectures
    assert (build.gpu_obstacle() is None) == bool(architectures)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert build.gpu_obstacle() == "CUDA_VISIBLE_DEVICES hides all GPUs"


@pytest.fixture
def nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that writes down its arguments and makes what `-o` names; there is no GPU."""
    script = program(
        tmp_path / "nvcc",
        'test "$1" = --version && exec cat "$0.version"\n'
        'echo "$@" >> "$0.calls"\n'
        'for last; do :; done; echo > "$last"',
    )
    (tmp_path / "nvcc.version").write_text("13.0")
    monkeypatch.setattr(build, "cuda_tool", lambda name: str(script))
    monkeypatch.setattr(build, "gpu_architectures", lambda: ())
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(build, "FOLDER", tmp_path / "built")
    return script


def calls_of(nvcc: Path) -> list[str]:
    path = nvcc.with_name("nvcc.calls")
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def test_nvcc_compiles_every_source_where_no_gpu_is(
    nvcc: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build.main() == 0
    said = capsys.readouterr().out
    assert "compiled and linked for sm_90" in said and "not run here, no GPU" in said
    *compiled, linked = calls_of(nvcc)
    sources = {path.name for path in (*build.HERE.glob("*.cu"), build.HERE / "worker.cpp")}
    assert {Path(call.split(" -c ")[1].split()[0]).name for call in compiled} == sources
    assert all("arch=compute_90,code=sm_90" in call for call in compiled)
    assert linked.endswith("worker")


def test_it_is_compiled_again_only_if_something_has_changed(
    nvcc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert build.main() == 0 and calls_of(nvcc)
    assert build.main() == 0 and not calls_of(nvcc)
    nvcc.with_name("nvcc.version").write_text("13.1")
    assert build.main() == 0 and calls_of(nvcc)
    monkeypatch.setattr(build, "gpu_architectures", lambda: ("120",))
    assert build.main() == 0 and "code=sm_120" in calls_of(nvcc)[0]
    header = nvcc.with_name("some.cuh")
    header.write_text("before")
    sources = build.sources()
    monkeypatch.setattr(build, "sources", lambda: [*sources, header])
    assert build.main() == 0 and calls_of(nvcc)
    header.write_text("after")
    assert build.main() == 0 and calls_of(nvcc)


def test_what_nvcc_refuses_is_said(nvcc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = nvcc.read_text()
    nvcc.write_text(script + '\necho "dropout.cu: reference is ambiguous" >&2; exit 1\n')
    assert build.main() == 1
    assert "reference is ambiguous" in capsys.readouterr().err
    nvcc.write_text(script)
    assert calls_of(nvcc)
    assert build.main() == 0 and calls_of(nvcc), "nothing of the failed build is kept"


def test_a_missing_nvcc_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "cuda_tool", lambda name: None)
    assert build.main() == 1
    assert "no nvcc, neither on PATH nor in CUDA_HOME" in capsys.readouterr().err


def collected(*files: str, **environment: str) -> list[str]:
    """The kernel tests that pytest would run."""
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", *files]
    unset = ("FUSED_DROPOUT_REQUIRE_CUDA", "FUSED_DROPOUT_KERNELS_ON_GPU_ONLY")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    done = subprocess.run(
        command, cwd=ROOT, env={**inherited, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    return [line for line in done.stdout.splitlines() if "::" in line]


def test_kernels_can_be_run_on_a_gpu_alone() -> None:
    files = ("tests/kernels/test_cuda_mask.py", "tests/cuda_on_cpu/test_emulator.py")
    everywhere = collected(*files, CUDA_VISIBLE_DEVICES="")
    for mode in ("[forward", "[reverse", "[random", "[asan", "[tsan"):
        assert any(mode in name for name in everywhere)
    assert not any("[gpu" in name for name in everywhere)
    on_gpu = collected(*files, FUSED_DROPOUT_KERNELS_ON_GPU_ONLY="1")
    assert on_gpu
    with_device = {name.replace("[gpu", "[forward") for name in on_gpu}
    assert all("[gpu" in name for name in on_gpu)
    assert with_device < set(everywhere)
    assert not any("planted_bug" in name for name in on_gpu), "which is for the emulator to find"


def test_the_summary_counts_what_all_processes_have_run() -> None:
    pytest.importorskip("xdist", reason="one process runs all tests without pytest-xdist")
    files = ("tests/kernels/test_cuda_mask.py", "tests/cuda_on_cpu/test_emulator.py")
    command = [sys.executable, "-m", "pytest", "-q", "-k", "forward", *files]
    found = []
    for at_once in ((), ("-n", "2", "--dist", "loadfile")):
        done = subprocess.run([*command, *at_once], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
        found += [line for line in done.stdout.splitlines() if "kernel launches" in line]
    assert len(found) == 2
    assert found[0] == found[1]
