"""Drop rates that change during training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from fused_dropout import _checks


class LinearSchedule:
    """Moves drop rates linearly from ``start`` to ``stop`` over ``total_steps`` calls of ``step``.

    Steps like a scheduler of ``torch.optim.lr_scheduler``: on construction every module gets
    ``start``; after k calls of :meth:`step` it has ``start + (stop - start) k / total_steps``, and
    from ``total_steps`` on it stays at exactly ``stop``.

        schedule = LinearSchedule(model, total_steps=epochs * len(loader))
        for batch in loader:
            ...
            optimizer.step()
            schedule.step()

    Source: Ghiasi, Lin and Le, "DropBlock: A regularization method for convolutional networks",
    NeurIPS 2018, section 3.3, which raises DropBlock's rate from 0 over the whole training.

    Args:
        modules: a module or several; they and all modules inside them that have a float ``p`` in
            [0, 1] are scheduled, such as this package's and torch's dropout layers.
        start: the rate at the start, in [0, 1].
        stop: the rate at the end, in [0, 1]; None: for each module the ``p`` that it has now.
        total_steps: calls of :meth:`step` until the end, at least 1.

    A module's rate is a constant to torch.compile, which compiles anew for each (as it does for
    ``torch.nn.Dropout``): compiled models want few steps, one an epoch say.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument out of range, or no module with a rate.
    """

    def __init__(
        self,
        modules: torch.nn.Module | Iterable[torch.nn.Module],
        start: float = 0.0,
        stop: float | None = None,
        total_steps: int = 1000,
    ) -> None:
        self._modules = _modules_with_a_rate(modules)
        self.start = _checks.check_probability(start, "start")
        if stop is None:
            self.stops = [module.p for module in self._modules]
        else:
            self.stops = [_checks.check_probability(stop, "stop")] * len(self._modules)
        self.total_steps = _checks.as_int(total_steps, "total_steps")
        if self.total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {self.total_steps}")
        self.last_step = 0
        self._set_rates()

    def step(self) -> None:
        """Moves all rates one step on."""
        self.last_step += 1
        self._set_rates()

    def get_last_p(self) -> list[float]:
        """The rates that the modules have now, in the order of ``named_modules``."""
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
            ValueError: it is of another number of modules.
        """
        stops = list(state_dict["stops"])
        if len(stops) != len(self._modules):
            raise ValueError(
                f"the state is of {len(stops)} modules with a rate, this schedule has "
                f"{len(self._modules)}"
            )
        self.start, self.stops = state_dict["start"], stops
        self.total_steps, self.last_step = state_dict["total_steps"], state_dict["last_step"]
        self._set_rates()

    def _rate(self, stop: float) -> float:
        done = self.last_step / self.total_steps
        return stop if done >= 1 else self.start + (stop - self.start) * done

    def _set_rates(self) -> None:
        for module, rate in zip(self._modules, self.get_last_p(), strict=True):
            module.p = rate


def _modules_with_a_rate(modules: Any) -> list[Any]:
    """Each of the given modules, and of those inside them, that has a drop rate; once."""
    roots = [modules] if isinstance(modules, torch.nn.Module) else modules
    if not isinstance(roots, Iterable):
        raise TypeError(f"modules must be a Module or several, got {type(modules).__name__}")
    found: dict[torch.nn.Module, None] = {}
    for root in roots:
        if not isinstance(root, torch.nn.Module):
            raise TypeError(f"modules must be a Module or several, got one {type(root).__name__}")
        found.update(dict.fromkeys(m for m in root.modules() if _has_rate(m)))
    if not found:
        raise ValueError("modules must hold at least one module with a float p in [0, 1]")
    return list(found)


def _has_rate(module: torch.nn.Module) -> bool:
    p = getattr(module, "p", None)
    return isinstance(p, float) and 0.0 <= p <= 1.0
