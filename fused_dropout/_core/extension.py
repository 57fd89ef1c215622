"""Loads the compiled extension, and explains why when it cannot."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps ."
_REMEDY = f"To mend it, run in a checkout of fused_dropout, with this torch installed:\n  {REBUILD}"


def _release(version: str) -> tuple[int, ...]:
    """The release that decides binary compatibility: (2, 13) of '2.13.0+cpu'."""
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2])


def _import_extension() -> ModuleType:
    try:
        return importlib.import_module("fused_dropout._C")
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        misfit = f"cannot be loaded by torch {torch.__version__}; was it built for another one?"
        what = "is not built" if missing else misfit
        raise ImportError(
            f"fused_dropout's compiled extension {what} ({error}).\n{_REMEDY}"
        ) from error


def _load() -> ModuleType:
    """The extension module."""
    extension = _import_extension()
    built_for = extension.build_facts()["torch"]
    if _release(built_for) != _release(torch.__version__):
        raise ImportError(
            f"fused_dropout's compiled extension was built for torch {built_for}, but torch "
            f"{torch.__version__} is running.\n{_REMEDY}"
        )
    forced = os.environ.get("FUSED_DROPOUT_ISA")
    if forced:
        try:
            extension.set_isa(forced)
        except ValueError as error:
            raise ValueError(f"FUSED_DROPOUT_ISA: {error}") from None
    return extension


# Loaded with the package, not at the first use: torch.compile must find plain operators. A failure
# is kept until something needs the extension, so that the package imports everywhere.
_extension: ModuleType | None = None
_failure: Exception | None = None
try:
    _extension = _load()
except (ImportError, ValueError) as error:
    _failure = error


def load() -> ModuleType:
    """The extension module.

    Raises:
        ImportError: it is missing, or was built for another torch; the message gives the remedy.
        ValueError: ``FUSED_DROPOUT_ISA`` names an instruction set that this machine lacks.
    """
    if _extension is None:
        assert _failure is not None
        raise type(_failure)(str(_failure)) from _failure
    return _extension


def is_loaded() -> bool:
    """Whether there are operators at all."""
    return _extension is not None


def operators() -> Any:
    """``torch.ops.fused_dropout``; raises as :func:`load` where there is none."""
    if _extension is None:
        load()
    return torch.ops.fused_dropout


def require_kernels(tensor: Tensor) -> None:
    """Raises an error that tells the remedy where no kernels were built for ``tensor``'s device."""
    if _extension is None or not tensor.is_cpu:
        require_backend(tensor.device)


def require_backend(device: torch.device) -> None:
    """The same for a device."""
    load()
    if device.type in ("cpu", "meta"):
        return
    if device.type != "cuda":
        raise RuntimeError(f"fused_dropout has kernels for cpu and cuda tensors, got {device}")
    if not build_info()["cuda"]:
        raise RuntimeError(
            f"this fused_dropout was built without CUDA kernels, got a tensor on {device}. Move "
            "it to the CPU, or rebuild where torch is a CUDA build and nvcc is on PATH:\n"
            f"  FUSED_DROPOUT_CUDA=1 {REBUILD}"
        )


def build_info() -> dict[str, Any]:
    """How the extension was built.

    Keys: version, commit, torch, compiler, cuda, cuda_architectures, isas; "" stands for none.
    """
    return dict(load().build_facts())


def available_isas() -> tuple[str, ...]:
    """The instruction sets that the CPU kernels can use on this machine, best first."""
    return tuple(load().available_isas())


def current_isa() -> str:
    """The instruction set that the CPU kernels use now."""
    return str(load().current_isa())


@contextmanager
def use_isa(name: str) -> Iterator[None]:
    """Forces an instruction set for the whole process while the context lasts.

    Raises:
        ValueError: ``name`` is not one of :func:`available_isas`.
    """
    extension = load()
    before = extension.current_isa()
    extension.set_isa(name)
    try:
        yield
    finally:
        extension.set_isa(before)


def cuda_obstacle() -> tuple[str, str] | None:
    """Why no CUDA kernel can run here and how to mend it, or None if one can."""
    if not build_info()["cuda"]:
        remedy = "rebuild with FUSED_DROPOUT_CUDA=1 where torch is a CUDA build and nvcc on PATH"
        return "no CUDA in this build", remedy
    if not torch.cuda.is_available():
        return "no GPU", "torch.cuda.is_available() is False; nvidia-smi shows what the driver sees"
    return None
