"""Loading the extension: what is reported, forced instruction sets, and failures that explain."""

from __future__ import annotations

import os
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
    heavy += ("sympy", "mpmath", "rich", "matplotlib", "sklearn")
    assert [name for name in added if name.startswith(heavy)] == []


def test_build_info() -> None:
    info = extension.build_info()
    assert info["version"] == fused_dropout.__version__
    assert info["torch"].split(".")[:2] == torch.__version__.split(".")[:2]
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
        raise ImportError("undefined symbol: _ZN3c105ErrorE")

    monkeypatch.setattr(extension.importlib, "import_module", fail)
    with pytest.raises(ImportError, match=r"built for another one.*undefined symbol"):
        extension._import_extension()


def test_extension_of_another_torch_explains(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        @staticmethod
        def build_facts() -> dict[str, str]:
            return {"torch": "2.1.0"}

    monkeypatch.setattr(extension, "_import_extension", Other)
    with pytest.raises(ImportError, match=r"built for torch 2\.1\.0, but torch"):
        extension._load()
