"""What the demo measures, for its table and its picture."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

from fused_dropout._tools.datasets import Dataset
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

    def figures(self) -> dict[str, Any]:
        """All of it, and the mean accuracy, for a JSON file."""
        return {**asdict(self), "accuracy": self.accuracy}


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

    def figures(self) -> dict[str, Any]:
        """What the table and the picture show, for a JSON file."""
        return {
            "data": self.data.name,
            "features": self.data.features,
            "train_examples": len(self.data.train_x),
            "test_examples": len(self.data.test_x),
            "trained_examples": len(self.trained.train_x),
            "settings": asdict(self.settings),
            "own_masks": self.own_masks,
            "rows": [
                {"name": "naive", **self.naive.figures()},
                {"name": "fused", **self.fused.figures()},
            ],
            "largest_loss_difference": self.largest_loss_difference,
            "accuracies_with_other_masks": self.more_draws,
            "fused_on_all_examples": None if self.fused_all is None else asdict(self.fused_all),
        }
