"""Names of kernels, as people write them."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence

from .tools import run


def short_name(demangled: str) -> str:
    """'op::kernel<float>' of 'void fused_dropout::op::(anonymous namespace)::kernel<float>(...)'"""
    text = demangled.replace("(anonymous namespace)::", "").replace("fused_dropout::", "")
    match = re.match(r"(?:void )?((?:\w+::)*\w+(?:<[^()]*>)?)(?:\(|$)", text)
    return match[1].replace("__nv_bfloat16", "bf16").replace("__half", "fp16") if match else text


def demangle(names: Sequence[str]) -> list[str]:
    """The names as C++ writes them; as they are where there is no c++filt."""
    tool = shutil.which("c++filt")
    if tool is None:
        return list(names)
    return run([tool], text="\n".join(names)).splitlines()
