"""What is kept of the predictions: moments, entropies, on request the predictions themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class _MeanAndVariance(NamedTuple):
    mean: Tensor
    variance: Tensor


class MCPrediction(_MeanAndVariance):
    """Moments of a model's output over its masks, and what else was asked for.

    It is the tuple ``(mean, variance)``. An attribute that was not asked for raises an
    AttributeError that says how to.

    Attributes:
        mean: tensor of the output's shape.
        variance: tensor of the output's shape.
        entropy: of the mean of the class probabilities, in nats: the uncertainty of the prediction.
            A tensor of the output's shape without ``class_dim``.
        mutual_information: of the class and the masks, in nats: that entropy less the mean of the
            entropies of the predictions. It is the part of the uncertainty that is about the model
            and that more data could take away: 0 where all masks predict alike, however uncertain.
            Houlsby et al. 2011 choose training examples by it (BALD).
        samples: the predictions, ``[samples, *output.shape]``, in the output's dtype.
    """

    entropy: Tensor
    mutual_information: Tensor
    samples: Tensor

    # No `__slots__`: what was asked for is in the instance's dictionary, which pickle keeps.

    def __new__(
        cls,
        mean: Tensor,
        variance: Tensor,
        *,
        entropy: Tensor | None = None,
        mutual_information: Tensor | None = None,
        samples: Tensor | None = None,
    ) -> MCPrediction:
        self = super().__new__(cls, mean, variance)
        further = {"entropy": entropy, "mutual_information": mutual_information, "samples": samples}
        vars(self).update({name: it for name, it in further.items() if it is not None})
        return self

    def __getattr__(self, name: str) -> Any:
        arguments = {
            "entropy": "class_dim=",
            "mutual_information": "class_dim=",
            "samples": "keep_samples=True",
        }
        if name in arguments:
            raise AttributeError(
                f"{name} was not asked for: call mc_predict with {arguments[name]}"
            )
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    def __repr__(self) -> str:
        values = {"mean": self.mean, "variance": self.variance, **vars(self)}
        shown = ", ".join(f"{name}={value!r}" for name, value in values.items())
        return f"{type(self).__name__}({shown})"


def check_batch(part: MCPrediction, first: MCPrediction) -> None:
    """The result of a further batch can stand behind that of the first."""
    shape, wanted = part.mean.shape, first.mean.shape
    if len(shape) == 0:
        raise RuntimeError("batches take a model whose output has a row for each item; it has none")
    if shape[1:] != wanted[1:]:
        raise RuntimeError(
            "the outputs of all batches must have one shape behind the items, got "
            f"{list(wanted[1:])} and {list(shape[1:])}; transform= can make them equal"
        )


def concatenated(parts: Sequence[MCPrediction]) -> MCPrediction:
    """The predictions of a batch after the other as those of one."""
    # `samples` counts the predictions first, and then the items.
    further = {
        name: torch.cat([vars(part)[name] for part in parts], 1 if name == "samples" else 0)
        for name in vars(parts[0])
    }
    mean, variance = (torch.cat(moments) for moments in zip(*parts, strict=True))
    return MCPrediction(mean, variance, **further)


def _wide(values: Tensor) -> Tensor:
    """In float32 at least."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class Moments:
    """Mean, and sum of squared deviations from it, of the values added so far."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.squares = torch.zeros(())
        self.first = torch.zeros(())
        self.equal = torch.ones((), dtype=torch.bool)

    def add(self, values: Tensor) -> None:
        """``values[k]`` is the k-th new one."""
        values = _wide(values)
        new = len(values)
        total = self.count + new
        new_mean = values.mean(0)
        new_squares = (values - new_mean).square().sum(0)
        if self.count == 0:
            self.mean, self.squares = new_mean, new_squares
            self.first = values[0].detach()
            self.equal = (values.detach() == self.first).all()
        else:
            delta = new_mean - self.mean
            self.mean = self.mean + delta * (new / total)
            between = delta.square() * (self.count * new / total)
            self.squares = self.squares + new_squares + between
            self.equal = self.equal & (values.detach() == self.first).all()
        self.count = total

    def all_equal(self) -> bool:
        """Whether several values were added, of one element at least, and all were the same.

        False for tensors whose elements cannot be read here.
        """
        if self.count < 2 or self.first.numel() == 0 or self.first.is_meta:
            return False
        try:
            return bool(self.equal)
        except RuntimeError:  # in torch.func.vmap a batch has no single answer
            return False


class ClassEntropies:
    """Entropy of the mean, and mean entropy, of the class probabilities added so far.

    Both are sums in float64. Their difference, the mutual information, is above 0 for any
    non-negative numbers, normalised or not, because x log x is convex; so it is no smaller than
    rounding in float64 makes it, whatever the dtype of the probabilities.
    """

    def __init__(self, class_dim: int) -> None:
        self.class_dim = class_dim
        self.count = 0
        self.total = self.entropies = torch.zeros(())
        self.improper = torch.zeros((), dtype=torch.bool)
        self.dtype = torch.float32

    def add(self, values: Tensor) -> None:
        """``values[k]`` are the k-th new probabilities."""
        dims = values.dim() - 1
        if not -dims <= self.class_dim < dims:
            raise IndexError(
                f"class_dim must be a dimension of the output, which has {dims}; got "
                f"{self.class_dim}"
            )
        dim = self.class_dim % dims
        probabilities = values.double()
        tolerance = max(1e-3, 4 * torch.finfo(values.dtype).eps)
        sums = probabilities.detach().sum(dim + 1)
        improper = (probabilities.detach() < 0).any() | ((sums - 1).abs() > tolerance).any()
        total, entropies = probabilities.sum(0), _entropy(probabilities, dim + 1).sum(0)
        if self.count == 0:
            self.total, self.entropies, self.improper = total, entropies, improper
            self.dtype = torch.promote_types(values.dtype, torch.float32)
            self._refuse_improper()  # before all other predictions are made
        else:
            self.total, self.entropies = self.total + total, self.entropies + entropies
            self.improper = self.improper | improper
        self.count += len(values)

    def results(self) -> dict[str, Tensor]:
        """By the attribute's name."""
        self._refuse_improper()
        dim = self.class_dim % self.total.dim()
        entropy = _entropy(self.total / self.count, dim)
        information = (entropy - self.entropies / self.count).clamp_min(0)
        return {"entropy": entropy.to(self.dtype), "mutual_information": information.to(self.dtype)}

    def _refuse_improper(self) -> None:
        """Raises for what are no probabilities; NaNs pass."""
        if self.improper.is_meta:
            return
        try:
            improper = bool(self.improper)
        except RuntimeError:  # in torch.func.vmap a batch has no single answer
            return
        if improper:
            raise ValueError(
                f"class_dim={self.class_dim} takes an output of probabilities, at least 0 and with "
                "sums of 1 along it; transform= can make them of logits, as "
                f"lambda y: y.softmax({self.class_dim})"
            )


def _entropy(probabilities: Tensor, dim: int) -> Tensor:
    """In nats; 0 log 0 is 0, and its gradient is finite."""
    tiny = torch.finfo(probabilities.dtype).tiny
    return -(probabilities * probabilities.clamp_min(tiny).log()).sum(dim)
