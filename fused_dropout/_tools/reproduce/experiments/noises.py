"""Every noise of the package in the same place of one network, on Fashion-MNIST.

Dive into Deep Learning, section 4.6, exercise 7, asks for a noise that beats dropout on
Fashion-MNIST for a fixed architecture. Srivastava et al. 2014, section 10, multiply by normal
numbers instead of zeros and ones, with the same mean and variance, and find that this "works just
as well, or perhaps better".

The network is the book's 784-256-256-10. Each noise acts where the book has its dropout, on the
units of both hidden layers or on the weights that read them. The rate is .5, which Srivastava et
al. use for hidden units. Not all of them compare like for like:
- concrete dropout and sparse variational dropout learn their rates, and add terms to the loss;
- input noise acts on the pixels only;
- alpha dropout needs SELU, drop path a residual connection: they are other networks, and compare
  with those networks without noise.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fused_dropout import normal_noise
from fused_dropout._tools.datasets import CLASSES
from fused_dropout._tools.reproduce.checks import Ordering
from fused_dropout._tools.reproduce.experiment import (
    Budget,
    Experiment,
    Job,
    Measured,
    Metric,
    Setting,
)
from fused_dropout._tools.reproduce.plots import COLORS, decorate, draw_seeds, labels_of
from fused_dropout._tools.reproduce.training import Recipe, fit, tested
from fused_dropout.nn import (
    AlphaDropout,
    ConcreteDropout,
    DropConnectLinear,
    Dropout,
    DropPathAdd,
    GaussianDropout,
    VariationalDropoutLinear,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.figure import Figure

    from fused_dropout._tools.reproduce.results import Results

_HIDDEN = 256
_RATES = (0.5, 0.5)  # of the first and second hidden layer
_DEVIATION = 0.2  # of the noise on the pixels, which are in [0, 1]
_LENGTH_SCALE = 1e-2  # of the prior of concrete dropout's weights
# Of sparse variational dropout's divergence. With so few images the whole of it, 1, prunes nearly
# all weights.
_KL_WEIGHT = 0.01

SETTINGS = (
    Setting("none", "no noise", {"noise": "none"}),
    Setting("dropout", "dropout", {"noise": "dropout"}),
    Setting("gaussian", "Gaussian dropout", {"noise": "gaussian"}),
    Setting("dropconnect", "DropConnect, mask per example", {"noise": "dropconnect"}),
    Setting("dropconnect_batch", "DropConnect, mask per batch", {"noise": "dropconnect_batch"}),
    Setting("concrete", "concrete dropout", {"noise": "concrete"}),
    Setting("variational", "sparse variational dropout", {"noise": "variational"}),
    Setting("input", "Gaussian noise on the input", {"noise": "input"}),
    Setting("selu", "SELU, no noise", {"noise": "selu"}),
    Setting("alpha", "SELU, alpha dropout", {"noise": "alpha"}),
    Setting("residual", "residual, no noise", {"noise": "residual"}),
    Setting("drop_path", "residual, drop path", {"noise": "drop_path"}),
)
# The networks without noise that others compare with; "none" for all other noises.
_BASELINES = {"selu": "selu", "alpha": "selu", "residual": "residual", "drop_path": "residual"}


class InputNoise(nn.Module):
    """Adds normal numbers of the package's own generator in training, anew in every call."""

    def __init__(self, deviation: float, seed: int) -> None:
        super().__init__()
        self.deviation, self.seed, self.calls = deviation, seed, 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        self.calls += 1
        return x + self.deviation * normal_noise(x.shape, seed=self.seed, offset=self.calls)


class Residual(nn.Module):
    """x + branch(x), where whole examples lose the branch with probability p in training."""

    def __init__(self, branch: nn.Module, p: float) -> None:
        super().__init__()
        self.branch, self.add = branch, DropPathAdd(p)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.add(x, self.branch(x))
        return output


def build(features: int, noise: str, examples: int, seed: int) -> nn.Sequential:
    """The network with this noise; all draw the same first weights from torch's generator."""
    first = nn.Linear(features, _HIDDEN)
    if noise in ("residual", "drop_path"):
        p = _RATES[1] if noise == "drop_path" else 0.0
        block = Residual(nn.Sequential(nn.Linear(_HIDDEN, _HIDDEN), nn.ReLU()), p)
        return nn.Sequential(first, nn.ReLU(), block, nn.Linear(_HIDDEN, CLASSES))
    second, third = (
        _noisy(noise, p, units, examples)
        for p, units in zip(_RATES, (_HIDDEN, CLASSES), strict=True)
    )
    activation = nn.SELU if noise in ("selu", "alpha") else nn.ReLU
    network = nn.Sequential(first, activation(), second, activation(), third)
    if activation is nn.SELU:
        _initialise_for_selu(network)
    return nn.Sequential(InputNoise(_DEVIATION, seed), network) if noise == "input" else network


def _noisy(noise: str, p: float, units: int, examples: int) -> nn.Module:
    """A linear layer whose inputs or weights have the noise."""
    layers: dict[str, Callable[[int, int], nn.Linear]] = {
        "dropconnect": partial(DropConnectLinear, p=p, mask="example"),
        "dropconnect_batch": partial(DropConnectLinear, p=p, mask="batch"),
        # Starts with about the noise of Gaussian dropout at a rate of .2.
        "variational": partial(VariationalDropoutLinear, log_sigma2_init=-8.0),
    }
    linear = layers.get(noise, nn.Linear)(_HIDDEN, units)
    if noise == "concrete":
        return ConcreteDropout(
            linear,
            weight_regulariser=_LENGTH_SCALE**2 / examples,
            dropout_regulariser=1.0 / examples,
        )
    before = {"dropout": Dropout, "gaussian": GaussianDropout, "alpha": AlphaDropout}
    return nn.Sequential(before[noise](p), linear) if noise in before else linear


def _initialise_for_selu(network: nn.Module) -> None:
    """Normal weights of variance 1 / inputs, which SELU needs to keep mean 0 and variance 1."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)


def run(job: Job) -> Measured:
    """Train with one noise; the learned noises add their terms to the loss."""
    data, noise = job.data, job.options["noise"]
    assert data is not None
    examples = len(data.train_x)
    network = build(data.features, noise, examples, job.seed)
    learned = [m for m in network.modules() if isinstance(m, ConcreteDropout)]
    sparse = [m for m in network.modules() if isinstance(m, VariationalDropoutLinear)]

    def penalty(network: nn.Module) -> Tensor:
        terms = [torch.stack(module.regulariser()).sum() for module in learned]
        terms += [_KL_WEIGHT * module.kl() / examples for module in sparse]
        return torch.stack(terms).sum()

    recipe = Recipe(
        job.budget.epochs,
        batch_size=100,
        lr=0.02,
        momentum=0.9,
        decays=True,
        penalty=penalty if learned or sparse else None,
    )
    fit(network, data.train, recipe, job.seed, job.report)
    values = {"test_error": 100.0 * (1.0 - tested(network, *data.test)[0])}
    if learned:
        values["rate"] = torch.stack([module.p for module in learned]).mean().item()
    if sparse:  # the rate p of Gaussian dropout has alpha = p / (1 - p)
        rates = [module.log_alpha().sigmoid().flatten() for module in sparse]
        values["rate"] = torch.cat(rates).mean().item()
    return Measured(values)


def draw(figure: Figure, results: Results) -> None:
    """The test errors, and what each noise gains over its network without noise, seed by seed."""
    errors, gains = figure.subplots(1, 2)
    draw_seeds(errors, results, labels_of(SETTINGS), "test_error", colors=len(COLORS))
    errors.set_xlabel("test error, %")
    errors.set_title("Test error")
    names = list(labels_of(SETTINGS))
    for place, name in enumerate(names):
        baseline = results.values(_BASELINES.get(name, "none"), "test_error")
        pairs = zip(baseline, results.values(name, "test_error"), strict=True)
        gain = [before - after for before, after in pairs]
        if any(gain):  # not for the networks without noise of their own
            gains.plot(gain, [place] * len(gain), "o", color=COLORS[place % len(COLORS)])
    gains.axvline(0.0, color=COLORS[7], linewidth=0.8)
    gains.set_yticks(range(len(names)), [""] * len(names))
    gains.set_ylim(errors.get_ylim())
    gains.set_xlabel("percentage points")
    gains.set_title("Gain over the same network without noise")
    decorate(gains)


EXPERIMENT = Experiment(
    name="noises",
    title="All noises in one network, on Fashion-MNIST",
    question="Which noise does best in the same network, and is Gaussian dropout as good as "
    "dropout?",
    source="Srivastava et al., Dropout, JMLR 2014, section 10; Zhang, Lipton, Li and Smola, Dive "
    "into Deep Learning, section 4.6, exercise 7",
    data=("fashion-mnist",),
    settings=SETTINGS,
    metrics=(
        Metric("test_error", "test error, %", 2),
        Metric("rate", "drop rate learned (mean)", 2),
    ),
    checks=(
        Ordering("dropout errs less than no noise", "test_error", "dropout", "none"),
        Ordering(
            "Gaussian dropout does as well as dropout, or better",
            "test_error",
            "gaussian",
            "dropout",
        ),
        Ordering("DropConnect errs less than no noise", "test_error", "dropconnect", "none"),
    ),
    chosen=(
        "rate and number of images were taken where regularisation shows; with rates .2, .5 "
        "and 2000 images dropout was not reliably better."
    ),
    run=run,
    draw=draw,
    quick=Budget(seeds=2, epochs=2, examples=500, time="8 s"),
    default=Budget(seeds=5, epochs=100, examples=1000, time="6 min"),
    full=Budget(seeds=5, epochs=50, time="3 h"),
    smaller="1000 of the 60000 training images of the book; Srivastava et al. compare Gaussian "
    "dropout with dropout on MNIST and CIFAR-10.",
)
