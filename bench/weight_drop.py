"""Layers with WeightDrop against the bare layers. Run: python bench/weight_drop.py

Measures a training step (forward, and the gradients of input and parameters) of an LSTM, 256 units,
batch 32, 64 steps, whose weight_hh has masks, of a convolution and of an embedding that drops
words. `plain` is the layer without masks, the floor: what masks add is to draw and apply them once
for each weight, not for each step. `eager` is what people write: the weight through `F.dropout` in
every forward, as AWD-LSTM's WeightDrop does, and for the embedding a mask over the whole table, as
its embedded_dropout does. `--save` writes all figures as JSON and a plot as PNG to bench/results/.
Exit status 1 if a goal is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fused_dropout._tools.bench.columns import Result, milliseconds, printed, times
from fused_dropout._tools.bench.devices import Device
from fused_dropout._tools.bench.harness import OURS, Key, Measured, Prepare, measure_rows, relative
from fused_dropout._tools.bench.op import FORWARD, PHASES
from fused_dropout._tools.bench.report import Goal, Script, Setup, results_beside, run_script
from fused_dropout.nn import EmbeddingDropout, WeightDrop

PS = (0.5, 0.1)
PLAIN, EAGER = "plain", "eager"
LSTM = (64, 32, 256)  # steps, batch, units
CONV = (16, 64, 56)  # batch, channels, side
WORDS = (70, 32, 30_000, 400)  # steps, batch, words, units


def eager_on_weight(layer: nn.Module, name: str, p: float) -> Callable[[Tensor], Any]:
    """The layer called with one parameter through F.dropout."""

    def call(x: Tensor) -> Any:
        weight = F.dropout(getattr(layer, name), p)
        return torch.func.functional_call(layer, {name: weight}, (x,))

    return call


def eager_embedding(layer: nn.Embedding, p: float) -> Callable[[Tensor], Tensor]:
    """A mask of one number per word, times the whole table."""

    def call(words: Tensor) -> Tensor:
        mask = layer.weight.new_empty(len(layer.weight), 1).bernoulli_(1 - p) / (1 - p)
        return F.embedding(words, mask.expand_as(layer.weight) * layer.weight)

    return call


def layers(
    make: Callable[[], nn.Module], name: str
) -> dict[Key, tuple[nn.Module, Callable[[Tensor], Any]]]:
    """What is measured of a layer: the module with the parameters, and the call."""
    found: dict[Key, tuple[nn.Module, Callable[[Tensor], Any]]] = {}
    plain = make()
    found[PLAIN, None] = plain, plain
    for p in PS:
        ours: Any = WeightDrop(make(), name, p)
        found[OURS, p] = ours, ours
        bare = make()
        found[EAGER, p] = bare, eager_on_weight(bare, name, p)
    return found


def embeddings(
    words: int, units: int, device: str
) -> dict[Key, tuple[nn.Module, Callable[[Tensor], Any]]]:
    """The same of embeddings."""
    plain = nn.Embedding(words, units, device=device)
    found: dict[Key, tuple[nn.Module, Callable[[Tensor], Any]]] = {(PLAIN, None): (plain, plain)}
    for p in PS:
        ours = EmbeddingDropout(words, units, p=p, device=device)
        found[OURS, p] = ours, ours
        bare = nn.Embedding(words, units, device=device)
        found[EAGER, p] = bare, eager_embedding(bare, p)
    return found


def measure_lstm(
    shape: tuple[int, int, int] = LSTM, *, device: Device, **options: Any
) -> dict[str, Any]:
    """An LSTM of one layer."""
    units, place = shape[-1], device.kind
    made = layers(lambda: nn.LSTM(units, units, device=place), "weight_hh_l0")
    return _measure("LSTM", shape, made, torch.randn(shape, device=place), device, options)


def measure_conv(
    shape: tuple[int, int, int] = CONV, *, device: Device, **options: Any
) -> dict[str, Any]:
    """A convolution, 3 x 3."""
    batch, channels, side = shape
    place = device.kind
    made = layers(lambda: nn.Conv2d(channels, channels, 3, padding=1, device=place), "weight")
    x = torch.randn(batch, channels, side, side, device=place)
    return _measure("Conv2d", shape, made, x, device, options)


def measure_embedding(
    shape: tuple[int, int, int, int] = WORDS, *, device: Device, **options: Any
) -> dict[str, Any]:
    """An embedding of many more words than a batch has."""
    steps, batch, words, units = shape
    x = torch.randint(words, (steps, batch), device=device.kind)
    made = embeddings(words, units, device.kind)
    return _measure("Embedding", shape, made, x, device, options)


def _measure(
    what: str,
    shape: tuple[int, ...],
    made: Mapping[Key, tuple[nn.Module, Callable[[Tensor], Any]]],
    x: Tensor,
    device: Device,
    options: dict[str, Any],
) -> dict[str, Any]:
    calls: dict[Key, Prepare] = {key: partial(_step, *pair, x) for key, pair in made.items()}
    result = measure_rows(calls, PHASES, _figures, device=device, **options)
    return {"what": what, "shape": list(shape), **result}


def _step(
    module: nn.Module, call: Callable[[Tensor], Any], x: Tensor, phase: str
) -> Callable[[], object]:
    """The forward pass in training mode, or a whole step but for the optimizer."""
    weights = list(module.parameters())
    leaves = [x.detach().requires_grad_(), *weights] if x.is_floating_point() else weights

    def forward() -> Tensor:
        output = call(leaves[0] if x.is_floating_point() else x)
        first: Tensor = output[0] if isinstance(output, tuple) else output
        return first

    grad = torch.randn_like(forward())
    if phase == FORWARD:
        return forward
    return lambda: torch.autograd.grad(forward(), leaves, grad)


def _figures(key: Key, measured: Mapping[Key, Measured]) -> dict[str, Any]:
    own = measured[key]
    found = {"times_plain": relative(own, measured[PLAIN, None], PHASES)}
    if key[1] is not None:
        found["speedup_over_eager"] = relative(measured[EAGER, key[1]], own, PHASES)
    return found


def shape_text(result: Result) -> str:
    """Which measurement a goal is about."""
    return f"{result['what']} {' x '.join(map(str, result['shape']))}"


result_title = shape_text

COLUMNS = [
    *map(milliseconds, PHASES),
    *(times(f"times plain,\n{phase}", "times_plain", phase) for phase in PHASES),
    *(times(f"faster than\neager, {phase}", "speedup_over_eager", phase) for phase in PHASES),
]
print_result = printed(result_title, COLUMNS)
MEASUREMENTS: list[Callable[..., dict[str, Any]]] = [measure_lstm, measure_conv, measure_embedding]
GOALS = [
    *(Goal(0, p, "times_plain", at_most=1.2, phase="total") for p in PS),
    *(Goal(1, p, "times_plain", at_most=1.2, phase="total") for p in PS),
    *(Goal(2, p, "speedup_over_eager", at_least=1, phase="total") for p in PS),
]
SETUPS = {
    "cpu": Setup("weight-drop-", MEASUREMENTS, GOALS),
    "cuda": Setup("weight-drop-", MEASUREMENTS),
}

SCRIPT = Script(__doc__, SETUPS, results_beside(__file__), print_result, shape_text, result_title)
main = partial(run_script, SCRIPT)

if __name__ == "__main__":
    sys.exit(main())
