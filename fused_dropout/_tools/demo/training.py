"""The demo's networks: how they are built, trained, tested and timed."""

from __future__ import annotations

import math
import statistics
import time
import timeit
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fused_dropout
from fused_dropout._core.rng import draw_rng_state
from fused_dropout._tools.baselines import NaiveDropConnectLinear, masked_linear
from fused_dropout._tools.datasets import CLASSES, Dataset
from fused_dropout.nn import DropConnectLinear
from fused_dropout.reference import keep_rate

LayerType = type[NaiveDropConnectLinear] | type[DropConnectLinear]
_MOMENTUM = 0.9
_WARM_UP = 0.1  # share of the steps in which the learning rate rises; it then falls to 0
_EVALUATIONS = 12
_TIMING_SECONDS = {"naive": 5.0, "fused": 2.0}  # a naive call may take most of its share


@dataclass(frozen=True)
class Settings:
    """The network and its schedule."""

    hidden: int
    p: float
    batch_size: int
    epochs: int
    lr: float
    seed: int  # of the initial weights and of the order of the data
    mask_seed: int

    def steps_per_epoch(self, data: Dataset) -> int:
        """Full batches only: the last, smaller one of an epoch is left out."""
        return len(data.train_x) // self.batch_size

    def steps(self, data: Dataset) -> int:
        return self.epochs * self.steps_per_epoch(data)


@dataclass
class History:
    """What one training run left: per step, and per evaluation on the test set."""

    losses: list[float] = field(default_factory=list)
    evaluated_steps: list[int] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)  # percent
    seconds: float = 0.0  # in training steps, without the evaluations


class SameMaskNaiveLinear(NaiveDropConnectLinear):
    """The naive layer with the masks that `DropConnectLinear` draws at the same point.

    It takes its random state from torch's default generator as the fused layer does, so after the
    same `torch.manual_seed` both see the same masks, call for call. The arithmetic, in time and
    memory, stays the naive one.
    """

    def forward(self, input: Tensor) -> Tensor:
        keep = keep_rate(self.p)
        if not self.training or keep == 1.0:
            return F.linear(input, self.weight, self.bias)
        seed, offset = draw_rng_state(input).tolist()
        rows, units = input.shape[0], self.out_features

        def draw(shape: tuple[int, int], stream: int) -> Tensor:
            mask = fused_dropout.mask(shape, self.p, seed=seed, offset=offset, stream=stream)
            return mask.to(self.weight.dtype)

        weight_mask = draw((rows * units, self.in_features), 0).view(rows, units, -1)
        bias_mask = draw((rows, units), 1)
        return masked_linear(input, self.weight, self.bias, weight_mask, bias_mask, keep)


def standardised(data: Dataset) -> Dataset:
    """Features shifted and scaled (all alike) to mean 0 and deviation 1 over the training set."""
    mean, deviation = data.train_x.mean(), data.train_x.std().clamp_min(1e-6)
    return replace(
        data,
        train_x=(data.train_x - mean) / deviation,
        test_x=(data.test_x - mean) / deviation,
    )


def build(layer: LayerType, features: int, settings: Settings) -> nn.Sequential:
    """features -> hidden -> hidden -> classes, DropConnect in the first two layers.

    The initial weights depend on `settings.seed` alone, not on the layer type.
    """
    torch.manual_seed(settings.seed)
    hidden, p = settings.hidden, settings.p
    return nn.Sequential(
        layer(features, hidden, p=p),
        nn.ReLU(),
        layer(hidden, hidden, p=p),
        nn.ReLU(),
        nn.Linear(hidden, CLASSES),
    )


def train(
    layer: LayerType,
    data: Dataset,
    settings: Settings,
    on_step: Callable[[History], None] = lambda history: None,
) -> History:
    """SGD with Nesterov momentum; the learning rate rises, then falls linearly to 0."""
    network = build(layer, data.features, settings)
    steps, per_epoch = settings.steps(data), settings.steps_per_epoch(data)
    optimizer = _optimizer(network, settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: _lr_factor(step + 1, steps)
    )
    evaluate_every = math.ceil(steps / _EVALUATIONS)
    order = torch.Generator().manual_seed(settings.seed)
    history = History()
    torch.manual_seed(settings.mask_seed)
    for step in range(steps):
        if step % per_epoch == 0:
            batches = torch.randperm(len(data.train_x), generator=order).split(settings.batch_size)
        batch = batches[step % per_epoch]
        start = time.perf_counter()
        loss = _step(network, optimizer, data.train_x[batch], data.train_y[batch])
        schedule.step()
        history.seconds += time.perf_counter() - start
        history.losses.append(loss)
        if (step + 1) % evaluate_every == 0 or step + 1 == steps:
            history.evaluated_steps.append(step + 1)
            history.accuracies.append(accuracy(network, data))
        on_step(history)
    return history


def accuracy(network: nn.Module, data: Dataset) -> float:
    """Percent of the test set that the network, in evaluation mode, gets right."""
    network.eval()
    with torch.no_grad():
        right = (network(data.test_x).argmax(1) == data.test_y).float().mean().item()
    network.train()
    return 100.0 * right


def layer_step(layer: LayerType, data: Dataset, settings: Settings) -> Callable[[], None]:
    """Forward and backward of the two DropConnect layers alone, at the training shapes."""
    layers = build(layer, data.features, settings)[:3]
    input = data.train_x[: settings.batch_size]
    grad_output = torch.ones(settings.batch_size, settings.hidden)

    def run() -> None:
        layers.zero_grad()
        layers(input).backward(grad_output)

    return run


def training_step(layer: LayerType, data: Dataset, settings: Settings) -> Callable[[], None]:
    """One whole training step, always on the same batch."""
    network = build(layer, data.features, settings)
    optimizer = _optimizer(network, settings)
    inputs, labels = data.train_x[: settings.batch_size], data.train_y[: settings.batch_size]

    def run() -> None:
        _step(network, optimizer, inputs, labels)

    return run


def seconds_per_call(fn: Callable[[], None], layer: LayerType) -> float:
    """Median time of a call, after a warm-up call."""
    seconds = _TIMING_SECONDS["fused" if layer is DropConnectLinear else "naive"]
    fn()
    timings: list[float] = []
    while sum(timings) < seconds:
        timings.append(timeit.timeit(fn, number=1))
    return statistics.median(timings)


def _step(
    network: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor
) -> float:
    optimizer.zero_grad()
    loss = F.cross_entropy(network(inputs), labels)
    loss.backward()
    optimizer.step()
    return loss.item()


def _optimizer(network: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    return torch.optim.SGD(network.parameters(), lr=settings.lr, momentum=_MOMENTUM, nesterov=True)


def _lr_factor(step: int, steps: int) -> float:
    """Of the peak rate, at step 1..steps: a triangle that starts and ends near 0."""
    peak = max(1.0, _WARM_UP * steps)
    return step / peak if step <= peak else max(0.0, (steps + 1 - step) / (steps + 1 - peak))
