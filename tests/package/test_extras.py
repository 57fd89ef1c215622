"""The library needs torch and numpy; a command that needs more says so."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.paths import ROOT

HIDDEN = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {modules!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
"""
EXTRAS = ("rich", "matplotlib", "sklearn", "scipy")


def run_without(modules: tuple[str, ...], code: str) -> subprocess.CompletedProcess[str]:
    """Python runs `code` as if the modules were not installed."""
    command = [sys.executable, "-c", HIDDEN.format(modules=modules) + code]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def command_without(modules: tuple[str, ...], *argv: str) -> subprocess.CompletedProcess[str]:
    code = f"from fused_dropout._tools.cli import main; sys.exit(main({list(argv)!r}))"
    return run_without(modules, code)


@pytest.mark.parametrize(
    ("argv", "module", "extra"),
    [
        (("verify", "--quick"), "rich", "tools"),
        (("bench",), "rich", "tools"),
        (("bench", "--plot", "x.png"), "matplotlib", "demo"),
        (("demo",), "rich", "demo"),
        (("demo",), "matplotlib", "demo"),
        (("demo",), "sklearn", "demo"),
        (("reproduce", "claims", "--quick"), "matplotlib", "demo"),
        (("reproduce", "d2l", "--quick"), "sklearn", "demo"),
        (("reproduce", "d2l", "--quick"), "scipy", "demo"),
    ],
)
def test_a_command_names_what_it_lacks(argv: tuple[str, ...], module: str, extra: str) -> None:
    hidden = EXTRAS if module == "rich" else (module,)
    done = command_without(hidden, *argv)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert f"needs {module}" in done.stderr
    assert f"pip install 'fused_dropout[{extra}]'" in done.stderr


@pytest.mark.parametrize("argv", [("--help",), ("--version",), ("info",)])
def test_the_others_need_no_extra(argv: tuple[str, ...]) -> None:
    done = command_without(EXTRAS, *argv)
    assert done.returncode == 0, done.stderr
    assert done.stdout and done.stderr == ""


def test_the_library_works_without_extras() -> None:
    code = (
        "import torch, fused_dropout\n"
        "layer = fused_dropout.nn.DropConnectLinear(8, 4)\n"
        "layer(torch.ones(2, 8)).sum().backward()\n"
        "print(layer.weight.grad.shape, fused_dropout.reference.mask((2, 3), 0.5, seed=0).shape)"
    )
    done = run_without(EXTRAS, code)
    assert "torch.Size([4, 8]) torch.Size([2, 3])" in done.stdout, done.stderr


def test_another_missing_module_is_a_failure_of_ours() -> None:
    done = command_without(("timeit",), "bench", "--shape", "1,1,1")
    assert done.returncode == 1
    assert "timeit" in done.stderr and "pip install" not in done.stderr


def test_a_script_of_bench_names_what_it_lacks() -> None:
    path = str(ROOT / "bench" / "drop_path.py")
    code = f"sys.argv = ['x.py']; import runpy; runpy.run_path({path!r}, run_name='__main__')"
    done = run_without(EXTRAS, code)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert "needs rich" in done.stderr and "pip install 'fused_dropout[tools]'" in done.stderr
