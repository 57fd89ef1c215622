"""What an experiment found, as it is kept in a JSON file.

Keys of the file: experiment, data, stand_in, budget (name, seeds, epochs, examples, options),
seconds, those of every benchmark (command, date, commit, versions, device, variables), settings and
verdicts. A setting has "values" and "curves", lists with an entry per seed, "images" of the first
seed, and "combined", what all seeds give together.
"""

from __future__ import annotations

import base64
import json
import math
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

_NUMBERS = re.compile(r"\[[\s\d.eE+,NaInfity-]+\]")  # a list of them in JSON

# What the data say of a claim.
HOLDS = "holds"
OPEN = "open"  # the seeds agree with the claim and with its opposite
CONTRADICTED = "contradicted"
NOT_JUDGED = "not judged"


@dataclass(frozen=True)
class Verdict:
    """What the data say of one claim."""

    claim: str
    state: str  # one of the four above
    reason: str  # the numbers


class Results:
    """The content of a JSON file, with the questions that tables, pictures and checks ask."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document

    @property
    def settings(self) -> list[str]:
        """The names of the settings."""
        return list(self.document["settings"])

    @property
    def data(self) -> str:
        """The name of the data."""
        return str(self.document["data"])

    @property
    def is_stand_in(self) -> bool:
        """Whether the data are others than the source's."""
        return bool(self.document["stand_in"])

    @property
    def verdicts(self) -> list[Verdict]:
        """What the data say of each claim."""
        return [Verdict(**verdict) for verdict in self.document["verdicts"]]

    def values(self, setting: str, metric: str) -> list[float]:
        """A metric by seed; [] if the setting has none."""
        return list(self.document["settings"][setting]["values"].get(metric, ()))

    def combined(self, setting: str, metric: str) -> float | None:
        """A number that all seeds give together."""
        value = self.document["settings"][setting]["combined"].get(metric)
        return None if value is None else float(value)

    def mean(self, setting: str, metric: str) -> float:
        """Over the seeds; NaN if the setting has no such metric."""
        values = self.values(setting, metric)
        return statistics.fmean(values) if values else math.nan

    def deviation(self, setting: str, metric: str) -> float:
        """The standard deviation over the seeds; 0 for a single one."""
        values = self.values(setting, metric)
        return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0

    def curves(self, setting: str, name: str) -> np.ndarray:
        """A curve by seed: [seeds, points]."""
        return np.array(self.document["settings"][setting]["curves"][name])

    def images(self, setting: str, name: str) -> np.ndarray:
        """Images of the first seed, uint8 [N, height, width]."""
        kept = self.document["settings"][setting]["images"][name]
        return np.frombuffer(base64.b85decode(kept["bytes"]), np.uint8).reshape(kept["shape"])

    def to_json(self) -> bytes:
        """The file, with each list of numbers on a line."""
        text = json.dumps(self.document, indent=1)
        return (_NUMBERS.sub(_on_one_line, text) + "\n").encode()


def _on_one_line(numbers: re.Match[str]) -> str:
    return f"[{' '.join(numbers[0][1:-1].split())}]"
