"""Fused DropConnect and dropout kernels for PyTorch, all on one exact and reproducible mask.

The package imports on every machine. Where its compiled part is missing or does not fit the torch
that is installed, the first operator used raises an ImportError with the reason and the remedy.
"""

from __future__ import annotations

from fused_dropout import functional, nn, reference, schedules
from fused_dropout._core.rng import make_rng_state
from fused_dropout._masks import mask, normal_noise, packed_mask, uniform_noise
from fused_dropout._models.check import Finding, check
from fused_dropout._models.convert import to_dropconnect, to_linear
from fused_dropout._models.max_norm import max_norm_
from fused_dropout._models.monte_carlo import MCPrediction, mc_dropout, mc_predict
from fused_dropout._models.replace import (
    ReplacementReport,
    register_converter,
    replace,
    replacement_report,
    restore,
)
from fused_dropout._version import __version__

__all__ = [
    "Finding",
    "MCPrediction",
    "ReplacementReport",
    "__version__",
    "check",
    "functional",
    "make_rng_state",
    "mask",
    "max_norm_",
    "mc_dropout",
    "mc_predict",
    "nn",
    "normal_noise",
    "packed_mask",
    "reference",
    "register_converter",
    "replace",
    "replacement_report",
    "restore",
    "schedules",
    "to_dropconnect",
    "to_linear",
    "uniform_noise",
]
