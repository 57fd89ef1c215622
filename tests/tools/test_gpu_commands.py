"""bench/gpu.sh: its stages, what it does after a failure, its summary and exit status; no GPU.

The script runs in a small tree, with a stand-in for Python that writes down what it is asked for.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from support.paths import ROOT

SCRIPTS = ("gpu.sh", "cuda_tree.sh", "copy_tree.sh")
FILES = {
    "setup.py": "",
    "csrc/kernel.cu": "one",
    "fused_dropout/__init__.py": "",
    "tests/cuda_on_cpu/build.py": "",
    "tests/gpu/test_compute_sanitizer.py": "",
    "tests/kernels/test_cuda_mask.py": "",
    "tests/ops/test_mask.py": "",
    "tests/gpu/test_on_a_gpu.py": "",
    "tests/ptx/test_ptx.py": "",
    "tests/cuda_on_cpu/test_sanitizer_reports.py": "",
    "bench/dropout.py": "",
    "bench/kernel_report.py": "",
    "bench/mask_storage.py": "",
}
# $GPU is what torch would say of a GPU; a command that matches $FAIL fails.
PYTHON = r"""#!/bin/sh
case "$*" in
    *is_available*) echo "$GPU"; exit 0 ;;
    *setup.commit*) echo 0123456789ab; exit 0 ;;
esac
echo "$FUSED_DROPOUT_KERNELS_ON_GPU_ONLY $TORCH_CUDA_ARCH_LIST $FUSED_DROPOUT_COMMIT $*" >> "$CALLS"
case "$*" in
    *--collect-only*)
        for tool in memcheck racecheck; do
            echo "tests/gpu/test_compute_sanitizer.py::test_mask_kernels[$tool]"
        done ;;
    *build_ext*) echo "fused_dropout: stand-in"; test -z "$SLOW" || sleep "$SLOW" ;;
esac
if test -n "$FAIL" && echo "$*" | grep -q -e "$FAIL"; then echo "it went wrong"; exit 1; fi
echo "all is well"
"""


class Tree:
    """A copy of the scripts with files that they find, and the commands that they ran."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.results = folder / "results"
        self.calls = folder / "calls.txt"
        for name, text in FILES.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        for name in SCRIPTS:
            shutil.copy(ROOT / "bench" / name, folder / "bench" / name)
        self.python = folder / "python"
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)

    def run(
        self, command: str, gpu: str = "9.0", **environment: str
    ) -> subprocess.CompletedProcess:
        """What the script says; the commands that it ran are in `asked`."""
        self.calls.write_text("")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("TORCH_CUDA_ARCH")}
        environment = {
            "PYTHON": str(self.python), "RESULTS": str(self.results), "CALLS": str(self.calls),
            "GPU": gpu, "FAIL": "", "SLOW": "", **environment,
        }  # fmt: skip
        script = [str(self.folder / "bench" / "gpu.sh"), command]
        return subprocess.run(
            script, env={**inherited, **environment}, capture_output=True, text=True
        )

    def asked(self, pattern: str) -> list[str]:
        return [line for line in self.calls.read_text().splitlines() if re.search(pattern, line)]


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def stages(said: str) -> dict[str, str]:
    """The verdicts by stage, as they were printed while it ran."""
    lines = said.partition("\n-- ")[0].partition("\nbench/gpu.sh ")[0].splitlines()
    found = (re.match(r"(\S+) +\d+ s  (passed|FAILED)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


COMMON = ["extension", "worker"]
STAGES = {
    "build": ["info", "kernel_report"],
    "test": ["verify", "test_cuda_mask.py", "test_mask.py", "test_on_a_gpu.py"],
    "sanitize": ["collect", "test_mask_kernels.memcheck.", "test_mask_kernels.racecheck."],
    "bench": ["dropout.py", "mask_storage.py"],
}
STAGES["all"] = [stage for command in list(STAGES) for stage in STAGES[command]]


@pytest.mark.parametrize("command", STAGES)
def test_every_stage_runs_and_is_summed_up(tree: Tree, command: str) -> None:
    done = tree.run(command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert stages(done.stdout) == dict.fromkeys([*COMMON, *STAGES[command]], "passed")
    assert f"gpu.sh {command}: {len(COMMON + STAGES[command])} stages" in done.stdout
    assert "0 failed" in done.stdout
    for stage in (*COMMON, *STAGES[command]):
        assert "all is well" in (tree.results / "logs" / f"{stage}.log").read_text() or (
            stage == "extension"
        )


@pytest.mark.parametrize(
    ("command", "fail", "failed"),
    [
        ("build", "fused_dropout info", "info"),
        ("build", "cuda_on_cpu.build", "worker"),
        ("test", "verify", "verify"),
        ("test", "test_cuda_mask", "test_cuda_mask.py"),
        ("sanitize", "memcheck", "test_mask_kernels.memcheck."),
        ("bench", "dropout.py", "dropout.py"),
        ("all", "verify", "verify"),
    ],
)
def test_goes_on_after_a_failure(tree: Tree, command: str, fail: str, failed: str) -> None:
    done = tree.run(command, FAIL=fail)
    assert done.returncode == 1
    verdicts = dict.fromkeys([*COMMON, *STAGES[command]], "passed") | {failed: "FAILED"}
    assert stages(done.stdout) == verdicts
    assert "1 failed" in done.stdout
    assert f"-- the end of {failed}.log\n" in done.stdout
    assert re.search(rf"failed:\n{re.escape(failed)} .* it went wrong\n$", done.stdout)


@pytest.mark.parametrize("command", STAGES)
def test_nothing_runs_on_an_extension_that_was_not_built(tree: Tree, command: str) -> None:
    done = tree.run(command, FAIL="build_ext")
    assert done.returncode == 1
    parts = ["build", "test", "sanitize", "bench"] if command == "all" else [command]
    verdicts = {"extension": "FAILED", "worker": "passed", **dict.fromkeys(parts, "FAILED")}
    assert stages(done.stdout) == verdicts
    assert "not run: the extension was not built" in done.stdout
    assert not tree.asked("pytest|bench/")


def test_sanitizers_need_the_worker(tree: Tree) -> None:
    done = tree.run("sanitize", FAIL="cuda_on_cpu.build")
    assert stages(done.stdout) == {"extension": "passed", "worker": "FAILED", "sanitizer": "FAILED"}
    assert done.returncode == 1


def test_a_stage_that_hangs_is_stopped(tree: Tree) -> None:
    script = tree.folder / "bench" / "gpu.sh"
    script.write_text(script.read_text().replace("limit=460", "limit=1"))
    done = tree.run("build", SLOW="30")
    assert "stopped after 1 s" in done.stdout
    assert stages(done.stdout)["extension"] == "FAILED"
    assert done.returncode == 1


@pytest.mark.parametrize("command", ["test", "sanitize", "bench", "all"])
def test_a_missing_gpu_is_one_line(tree: Tree, command: str) -> None:
    done = tree.run(command, gpu="none")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("bench/gpu.sh: torch sees no GPU")
    assert done.stderr.count("\n") == 1
    assert not tree.calls.read_text()


@pytest.mark.parametrize(
    ("command", "python", "said"),
    [
        ("tests", None, "expected build, test, sanitize, bench or all, got 'tests'"),
        ("build", "/nowhere/python", "PYTHON=/nowhere/python does not run, or has no torch"),
    ],
)
def test_mistakes_are_one_line(tree: Tree, command: str, python: str | None, said: str) -> None:
    done = tree.run(command, **({"PYTHON": python} if python else {}))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"bench/gpu.sh: {said}\n"


def test_builds_without_a_gpu_for_what_is_asked_for_or_an_h200(tree: Tree) -> None:
    done = tree.run("build", gpu="none")
    assert done.returncode == 0
    assert "torch sees no GPU: compiling for 9.0" in done.stdout
    assert tree.asked("9.0 0123456789ab setup.py build_ext")
    tree.run("build", gpu="none", TORCH_CUDA_ARCH_LIST="8.6")
    assert tree.asked("8.6 0123456789ab setup.py build_ext")
    assert "sees no GPU" not in tree.run("build", gpu="12.0").stdout
    assert tree.asked("12.0 0123456789ab setup.py build_ext")


def test_kernels_run_on_the_gpu_alone_and_their_ptx_nowhere(tree: Tree) -> None:
    tree.run("test")
    tests = tree.asked("pytest")
    assert len(tests) == 3 and all(line.startswith("1 ") for line in tests)
    assert "test_on_a_gpu.py" in tests[-1], "which needs the GPU's memory for itself"


def test_results_go_to_the_folder(tree: Tree) -> None:
    tree.run("bench")
    (dropout,) = tree.asked("bench/dropout.py")
    assert f"--device cuda --repeats 4 --save --results {tree.results}" in dropout
    (storage,) = tree.asked("bench/mask_storage.py")
    assert storage.endswith("--device cuda --repeats 4")


def test_only_what_has_changed_is_copied(tree: Tree) -> None:
    tree.run("build")
    copy = tree.folder / "build" / "gpu"
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*.*") if path.is_file()}
    (tree.folder / "csrc" / "kernel.cu").write_text("two")
    (tree.folder / "csrc" / "new.cu").write_text("new")
    (tree.folder / "bench" / "dropout.py").unlink()
    (tree.folder / "setup.py").touch()
    (copy / "fused_dropout" / "_C.so").touch()
    tree.run("build")
    assert (copy / "csrc" / "kernel.cu").read_text() == "two"
    assert (copy / "csrc" / "new.cu").exists()
    assert not (copy / "bench" / "dropout.py").exists()
    assert not (copy / "fused_dropout" / "_C.so").exists(), "which the build makes anew"
    for name in ("setup.py", "tests/ops/test_mask.py"):
        assert (copy / name).stat().st_mtime_ns == before[copy / name]


@pytest.mark.skipif(not shutil.which("make"), reason="needs GNU make")
def test_the_make_targets_call_the_script() -> None:
    commands = {"gpu": "all", **{f"gpu-{name}": name for name in STAGES if name != "all"}}
    for target, command in commands.items():
        done = subprocess.run(
            ["make", "--no-print-directory", "-n", target, "PYTHON=python3"],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.stdout == f"PYTHON=python3 bench/gpu.sh {command}\n", done.stderr
