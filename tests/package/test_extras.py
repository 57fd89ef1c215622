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


def commands_without(
    modules: tuple[str, ...], *commands: list[str]
) -> subprocess.CompletedProcess[str]:
    """Runs the commands in one process; its status is theirs, or 1 with all of them."""
    code = (
        "from fused_dropout._tools.cli import main\n"
        f"found = [main(argv) for argv in {commands!r}]\n"
        "sys.exit(found[0] if len(set(found)) == 1 else str(found))"
    )
    return run_without(modules, code)


# By the module that is missing: commands, and what they say to install.
LACKING: dict[str, list[tuple[list[str], str]]] = {
    "rich": [(["verify", "--quick"], "tools"), (["bench"], "tools"), (["demo"], "demo")],
    "matplotlib": [
        (["bench", "--plot", "x.png"], "demo"),
        (["demo"], "demo"),
        (["reproduce", "claims", "--quick"], "demo"),
    ],
    "sklearn": [(["demo"], "demo"), (["reproduce", "d2l", "--quick"], "demo")],
    "scipy": [(["reproduce", "d2l", "--quick"], "demo")],
}


@pytest.mark.parametrize("module", LACKING)
def test_commands_name_what_they_lack(module: str) -> None:
    """A line for each."""
    hidden = EXTRAS if module == "rich" else (module,)
    commands = [argv for argv, _ in LACKING[module]]
    done = commands_without(hidden, *commands)
    assert done.returncode == 2 and done.stdout == "", done.stderr
    for line, (_, extra) in zip(done.stderr.splitlines(), LACKING[module], strict=True):
        assert f"needs {module}" in line
        assert f"pip install 'fused_dropout[{extra}]'" in line


@pytest.mark.parametrize("argv", [["--help"], ["--version"], ["info"]], ids=" ".join)
def test_the_others_need_no_extra(argv: list[str]) -> None:
    done = commands_without(EXTRAS, argv)
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
    done = commands_without(("timeit",), ["bench", "--shape", "1,1,1"])
    assert done.returncode == 1
    assert "timeit" in done.stderr and "pip install" not in done.stderr


def test_a_script_of_bench_names_what_it_lacks() -> None:
    path = str(ROOT / "bench" / "drop_path.py")
    code = f"sys.argv = ['x.py']; import runpy; runpy.run_path({path!r}, run_name='__main__')"
    done = run_without(EXTRAS, code)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert "needs rich" in done.stderr and "pip install 'fused_dropout[tools]'" in done.stderr
