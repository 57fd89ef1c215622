"""Loading the extension: what is reported, forced instruction sets, and failures that explain."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
import torch

import fused_dropout
from fused_dropout._core import extension


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_import_adds_little_to_that_of_torch() -> None:
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "import fused_dropout; print(*sorted(set(sys.modules) - before))"
    )
    added = run_python(code).stdout.split()
    assert "fused_dropout._core.drop_block_gamma" in added
    heavy = ("torch._dynamo", "torch._inductor", "torch._numpy", "torch.onnx", "torch.distributed")
    heavy += ("sympy", "mpmath", "rich", "matplotlib", "sklearn", "scipy")
    assert [name for name in added if name.startswith(heavy)] == []


def test_build_info() -> None:
    info = extension.build_info()
    assert info["version"] == fused_dropout.__version__
    assert info["oldest_torch"] == "2.11"
    assert re.match(r"\d+\.\d+", info["torch"])
    assert set(extension.available_isas()) <= set(info["isas"])
    assert extension.available_isas()[-1] == "plain"


@pytest.mark.parametrize("isa", extension.available_isas())
def test_environment_forces_an_isa(isa: str) -> None:
    code = "from fused_dropout._core import extension; print(extension.current_isa())"
    assert run_python(code, FUSED_DROPOUT_ISA=isa).stdout.strip() == isa


def test_unknown_isa_says_what_there_is() -> None:
    done = run_python("import fused_dropout as f; f.mask(3, 0.5, seed=0)", FUSED_DROPOUT_ISA="mmx")
    assert done.returncode != 0
    assert "FUSED_DROPOUT_ISA: ISA must be one of" in done.stderr
    assert "'mmx'" in done.stderr


def test_use_isa_restores() -> None:
    before = extension.current_isa()
    with pytest.raises(KeyError), extension.use_isa("plain"):
        assert extension.current_isa() == "plain"
        raise KeyError
    assert extension.current_isa() == before
    with pytest.raises(ValueError, match="got 'sse'"), extension.use_isa("sse"):
        pass


MISSING = """
import sys
sys.modules["fused_dropout._C"] = None  # as if it were not built
import fused_dropout
layer = fused_dropout.nn.DropConnectLinear(3, 4)
print(repr(layer))
layer.eval()(__import__("torch").ones(2, 3))
fused_dropout.mask(3, 0.5, seed=0)
"""


def test_import_works_without_the_extension_and_the_first_use_explains() -> None:
    done = run_python(MISSING)
    assert "DropConnectLinear(in_features=3" in done.stdout
    assert "ImportError: fused_dropout's compiled extension is not built" in done.stderr
    assert "pip install --no-build-isolation" in done.stderr


def test_unloadable_extension_explains(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("undefined symbol: torch_parallel_for")

    monkeypatch.setattr(extension.importlib, "import_module", fail)
    with pytest.raises(ImportError, match=r"cannot be loaded by torch .*undefined symbol"):
        extension._import_extension()


def test_a_torch_that_is_too_old_explains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(ImportError, match=r"needs torch 2\.11 or newer, but torch 2\.9\.1"):
        extension._load()


def test_the_binary_calls_nothing_of_torch_but_its_stable_functions() -> None:
    """So it runs on every release from the oldest one on; see csrc/torch_abi.h."""
    binary = str(extension.load().__file__)

    def answer(*command: str) -> str:
        return subprocess.run([*command, binary], capture_output=True, text=True, check=True).stdout

    needed = re.findall(r"NEEDED.*\[(lib(?:torch|c10).*)\]", answer("readelf", "-d"))
    assert needed == ["libtorch_cpu.so"]
    called = re.findall(r" U (\w+)", answer("nm", "-D", "--undefined-only"))
    assert "torch_parallel_for" in called
    assert [name for name in called if re.match("_ZNK?(2at|3c10|5torch)", name)] == []
