"""What the demo measures, for its table and its picture."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from fused_dropout._tools.demo.datasets import Dataset
from fused_dropout._tools.demo.training import History, Settings


@dataclass
class Side:
    """Everything measured of one implementation."""

    layer_step: float  # seconds
    step: float  # seconds
    peak_bytes: int | None
    histories: list[History] = field(default_factory=list)  # one per seed

    @property
    def accuracy(self) -> float:
        return statistics.mean(history.accuracies[-1] for history in self.histories)


@dataclass
class Results:
    """What the table and the picture show."""

    settings: Settings
    data: Dataset  # all of it
    trained: Dataset  # what both networks were trained on
    own_masks: bool
    naive: Side
    fused: Side
    more_draws: list[float]  # test accuracies of ours with other masks
    fused_all: History | None  # ours on all of the data, where `trained` is a part of it

    @property
    def largest_loss_difference(self) -> float:
        pairs = zip(self.naive.histories, self.fused.histories, strict=True)
        return max(abs(a - b) for x, y in pairs for a, b in zip(x.losses, y.losses, strict=True))
