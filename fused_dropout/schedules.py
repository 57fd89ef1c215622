"""Drop rates that change during training: schedules that are stepped like torch's schedulers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from fused_dropout._core import checks
from fused_dropout._models.dropout_layers import drop_rates

__all__ = ["LinearSchedule"]


class LinearSchedule:
    """Moves drop rates linearly from ``start`` to ``stop`` over ``total_steps`` calls of ``step``.

    Steps like a scheduler of ``torch.optim.lr_scheduler``: on construction every module gets
    ``start``; after k calls of :meth:`step` it has ``start + (stop - start) k / total_steps``, and
    from ``total_steps`` on it stays at exactly ``stop``::

        schedule = LinearSchedule(model, total_steps=epochs * len(loader))
        for batch in loader:
            ...
            optimizer.step()
            schedule.step()

    Source: Ghiasi, Lin and Le, "DropBlock: A regularization method for convolutional networks",
    NeurIPS 2018, section 3.3, which raises DropBlock's rate from 0 over the whole training.

    Args:
        modules: a module or several; the drop rates of their dropout layers are scheduled. Those
            are the layers that :func:`fused_dropout.mc_dropout` lets drop; their rates are floats
            in [0, 1], such as ``p``, timm's ``drop_prob``, and the ``dropout`` of torch's recurrent
            layers and attention where it is above 0 now. A learned rate is none.
        start: the rate at the start, in [0, 1].
        stop: the rate at the end, in [0, 1]; None: each rate's value now.
        total_steps: calls of :meth:`step` until the end, at least 1.
        optimizer: kept as an attribute, and not used, for trainers that want each scheduler to name
            its optimizer, such as Lightning; a LightningModule must also define
            ``lr_scheduler_step(self, scheduler, metric)`` to call ``scheduler.step()``.

    A module's rate is a constant to torch.compile, which compiles anew for each (as it does for
    ``torch.nn.Dropout``): compiled models want few steps, one an epoch say.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, or no drop rate.
    """

    def __init__(
        self,
        modules: torch.nn.Module | Iterable[torch.nn.Module],
        start: float = 0.0,
        stop: float | None = None,
        total_steps: int = 1000,
        *,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> None:
        self._rates = _rates_of(modules)
        self.optimizer = optimizer
        self.start = checks.check_probability(start, "start")
        if stop is None:
            self.stops = [getattr(module, name) for module, name in self._rates]
        else:
            self.stops = [checks.check_probability(stop, "stop")] * len(self._rates)
        self.total_steps = checks.check_int(total_steps, "total_steps", 1)
        self.last_step = 0
        self._set_rates()

    def step(self) -> None:
        """Moves all rates one step on."""
        self.last_step += 1
        self._set_rates()

    def get_last_p(self) -> list[float]:
        """The rates now, in the order of ``named_modules``."""
        return [self._rate(stop) for stop in self.stops]

    def state_dict(self) -> dict[str, Any]:
        """Everything but the modules, for a checkpoint."""
        return {
            "start": self.start,
            "stops": list(self.stops),
            "total_steps": self.total_steps,
            "last_step": self.last_step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from ``state_dict``: the modules get the rates that they had then.

        Raises:
            KeyError: not what :meth:`state_dict` returns.
            ValueError: it is of another number of rates.
        """
        stops = list(state_dict["stops"])
        if len(stops) != len(self._rates):
            raise ValueError(
                f"the state is of {len(stops)} drop rates, this schedule has {len(self._rates)}"
            )
        self.start, self.stops = state_dict["start"], stops
        self.total_steps, self.last_step = state_dict["total_steps"], state_dict["last_step"]
        self._set_rates()

    def _rate(self, stop: float) -> float:
        done = self.last_step / self.total_steps
        return stop if done >= 1 else self.start + (stop - self.start) * done

    def _set_rates(self) -> None:
        for (module, name), rate in zip(self._rates, self.get_last_p(), strict=True):
            setattr(module, name, rate)


def _rates_of(modules: Any) -> list[tuple[torch.nn.Module, str]]:
    """Each drop rate of the given modules and of those inside them, once: its module and name."""
    roots = [modules] if isinstance(modules, torch.nn.Module) else modules
    if not isinstance(roots, Iterable):
        raise TypeError(f"modules must be a Module or several, got {type(modules).__name__}")
    found: dict[tuple[torch.nn.Module, str], None] = {}
    for root in roots:
        if not isinstance(root, torch.nn.Module):
            raise TypeError(f"modules must be a Module or several, got one {type(root).__name__}")
        for module in root.modules():
            found.update(dict.fromkeys((module, name) for name in drop_rates(module)))
    if not found:
        raise ValueError("modules must hold at least one dropout layer with a rate in [0, 1]")
    return list(found)
