"""Layers of packages for sequences: fastai's and PyTorch-NLP's locked dropout."""

from __future__ import annotations

from typing import Any

from torch import nn

from fused_dropout import nn as ours


def _rnn_dropout(layer: Any) -> nn.Module:
    return ours.LockedDropout(layer.p, batch_first=True)


def _locked_dropout(layer: Any) -> nn.Module:
    return ours.LockedDropout(layer.p)


CONVERTERS = {
    ("fastai", "RNNDropout"): _rnn_dropout,
    ("torchnlp", "LockedDropout"): _locked_dropout,
}
