"""Dropout at test time: what the masks agree on is right, what they disagree on is uncertain.

Dive into Deep Learning, section 4.6: "if the predictions agree across many different dropout masks,
then we might say that the network is more confident". Gal and Ghahramani 2016, "Dropout as a
Bayesian Approximation", gave the reason, and the picture: a digit of MNIST is rotated further and
further, so that it resembles nothing that the network was trained on. A plain softmax still points
at one class; under dropout the predictions of many masks spread over the classes.

Here each test digit is classified under 50 masks of dropout or of DropConnect. Their agreement is
the share of the masks that vote for the same class. A network without dropout has one prediction;
its confidence, the largest softmax output, stands in the place of the agreement.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fused_dropout import mc_predict
from fused_dropout._tools.datasets import CLASSES
from fused_dropout._tools.reproduce.checks import AtLeast, Ordering
from fused_dropout._tools.reproduce.experiment import (
    Budget,
    Experiment,
    Job,
    Measured,
    Metric,
    Setting,
)
from fused_dropout._tools.reproduce.networks import mlp
from fused_dropout._tools.reproduce.plots import (
    COLORS,
    decorate,
    draw_curves,
    draw_images,
    labels_of,
)
from fused_dropout._tools.reproduce.training import Recipe, fit, outputs
from fused_dropout.nn import DropConnectLinear, Dropout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fused_dropout._tools.reproduce.results import Results

_HIDDEN = (256, 256)
_EDGES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # between the bins of agreement
_REFUSED = (0.0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2)  # shares of the test digits
_ANGLES = tuple(range(0, 181, 15))  # degrees

SETTINGS = (
    Setting(
        "dropout", "dropout .5, masks", {"masks": True, "noises": (partial(Dropout, 0.5),) * 2}
    ),
    Setting(
        "dropconnect",
        "DropConnect .5, masks",
        {"masks": True, "linear": partial(DropConnectLinear, p=0.5)},
    ),
    Setting("none", "plain softmax, no masks", {"masks": False}),
)


def run(job: Job) -> Measured:
    """Train, then compare how certain the network is with whether it is right."""
    assert job.data is not None
    options, amounts = job.options, job.budget.options
    data = job.data.with_fewer_tests(amounts["tests"])
    noises, linear = options.get("noises", ()), options.get("linear", nn.Linear)
    network = mlp(data.features, _HIDDEN, noises, linear=linear)
    recipe = Recipe(job.budget.epochs, batch_size=100, lr=0.05, momentum=0.9)
    fit(network, data.train, recipe, job.seed, job.report)
    predict = partial(_predict, network, masks=amounts["masks"] if options["masks"] else 0)

    probabilities, agreement = predict(data.test_x)
    right = (probabilities.argmax(1) == data.test_y).float()
    places = torch.bucketize(agreement, torch.tensor(_EDGES))
    bins = [places == place for place in range(len(_EDGES) + 1)]
    least_certain_first = right[agreement.argsort(stable=True)]
    refused = [round(share * len(right)) for share in _REFUSED]
    kept = [least_certain_first[count:].mean().item() for count in refused]
    of_refused = least_certain_first[: refused[-1]].mean().item()

    digits = data.test_x[: amounts["rotated"]].view(-1, *data.shape)
    entropies = [_entropy(predict(_rotated(digits, angle))[0]).mean().item() for angle in _ANGLES]
    one = data.test_x[data.test_y == 1][:1].view(-1, *data.shape)
    strip = torch.cat([_rotated(one, angle) for angle in _ANGLES]).view(-1, *data.shape[1:])
    return Measured(
        {
            "accuracy": kept[0],
            "keeping_90": kept[_REFUSED.index(0.1)],
            "keeping_80": kept[-1],
            "refused": of_refused,
            "gap": kept[-1] - of_refused,
            "upright": entropies[0],
            "turned": entropies[_ANGLES.index(90)],
            "rise": entropies[_ANGLES.index(90)] - entropies[0],
        },
        {
            "agreement_of_bin": [agreement[chosen].mean().item() for chosen in bins],
            "accuracy_of_bin": [right[chosen].mean().item() for chosen in bins],
            "kept": kept,
            "entropies": entropies,
        },
        {"digit": (255.0 * strip.clamp(0.0, 1.0)).round().to(torch.uint8)},
    )


def _predict(network: nn.Module, inputs: Tensor, *, masks: int) -> tuple[Tensor, Tensor]:
    """Probabilities of the classes, and the share of the masks that agree; [N, 10] and [N]."""
    if masks == 0:
        probabilities = outputs(network, inputs).softmax(1)
        return probabilities, probabilities.amax(1)
    # The mean over the masks of the probabilities, and of the votes.
    mean = mc_predict(network, inputs, masks, transform=_probabilities_and_votes).mean
    return mean[:, 0], mean[:, 1].amax(1)


def _probabilities_and_votes(logits: Tensor) -> Tensor:
    votes = F.one_hot(logits.argmax(1), CLASSES).to(logits.dtype)
    return torch.stack([logits.softmax(1), votes], dim=1)


def _entropy(probabilities: Tensor) -> Tensor:
    """In bits: 0 if one class has all, log2 of 10 if all have the same."""
    return torch.special.entr(probabilities).sum(1) / math.log(2.0)


def _rotated(images: Tensor, degrees: float) -> Tensor:
    """Images [N, channels, height, width] turned about their centre; rows of features."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(len(images), 2, 3)
    grid = F.affine_grid(turn, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False).flatten(1)


def draw(figure: Figure, results: Results) -> None:
    """Accuracy by agreement, accuracy on what is not refused, and uncertainty under rotation."""
    panels = figure.subplot_mosaic(
        [["bins", "kept", "entropies"], ["bins", "kept", "digit"]], height_ratios=(1, 0.11)
    )
    labels = labels_of(SETTINGS)
    for (name, label), color in zip(labels.items(), COLORS, strict=False):
        # A bin without digits has no accuracy.
        agreement, accuracy = (
            np.ma.masked_invalid(results.curves(name, f"{what}_of_bin")).mean(0)
            for what in ("agreement", "accuracy")
        )
        panels["bins"].plot(agreement, accuracy, "o-", color=color, markersize=4, label=label)
    panels["bins"].plot([0, 1], [0, 1], ":", color="#808080", label="accuracy = agreement")
    panels["bins"].set_title("are they right when they agree?")
    panels["bins"].set_xlabel("share of the masks that agree, or confidence")
    panels["bins"].set_ylabel("test accuracy")
    panels["bins"].legend(frameon=False, fontsize=9)
    decorate(panels["bins"])
    draw_curves(panels["kept"], results, labels, "kept", x=[100 * share for share in _REFUSED])
    panels["kept"].set_title("when the least certain are refused")
    panels["kept"].set_xlabel("refused, % of the test digits")
    panels["kept"].set_ylabel("test accuracy on the others")
    draw_curves(panels["entropies"], results, labels, "entropies", x=_ANGLES)
    panels["entropies"].set_title("rotated digits")
    panels["entropies"].set_xlabel("rotation, degrees")
    panels["entropies"].set_ylabel("entropy of the prediction, bits")
    panels["entropies"].set_xticks(_ANGLES[::2])
    draw_images(panels["digit"], results.images("none", "digit"), columns=len(_ANGLES))


EXPERIMENT = Experiment(
    name="uncertainty",
    title="Monte Carlo dropout: agreement over masks as confidence",
    question="Is a network right more often where its masks agree, and does it notice that a digit "
    "is turned?",
    source="Gal and Ghahramani, Dropout as a Bayesian Approximation, ICML 2016, Figure 4; Dive "
    "into Deep Learning, section 4.6",
    data=("mnist",),
    settings=SETTINGS,
    metrics=(
        Metric("accuracy", "test accuracy"),
        Metric("keeping_90", "least certain 10 % refused"),
        Metric("keeping_80", "20 % refused"),
        Metric("refused", "of those 20 %"),
        Metric("upright", "entropy, upright digits, bits", 2),
        Metric("turned", "turned by 90 degrees, bits", 2),
    ),
    checks=(
        AtLeast("where the masks of dropout agree they are right more often", "gap", "dropout", 0),
        AtLeast(
            "where the masks of DropConnect agree they are right more often",
            "gap",
            "dropconnect",
            0,
        ),
        AtLeast("the uncertainty rises with the rotation", "rise", "dropout", 0),
        Ordering(
            "of turned digits the masks of dropout are less certain than a plain softmax",
            "turned",
            better="dropout",
            worse="none",
            higher_is_better=True,
        ),
    ),
    run=run,
    draw=draw,
    quick=Budget(
        seeds=2,
        epochs=5,
        examples=500,
        time="5 s",
        options={"tests": 300, "rotated": 10, "masks": 5},
    ),
    default=Budget(
        seeds=5,
        epochs=20,
        examples=5000,
        time="4 min",
        options={"tests": 10000, "rotated": 500, "masks": 50},
    ),
    full=Budget(
        seeds=5,
        epochs=100,
        time="1 h",
        options={"tests": 10000, "rotated": 1000, "masks": 100},
    ),
    smaller="a network of two layers learns 5000 digits; the paper trains LeNet on 60000, with "
    "dropout before its last layer, and turns a digit 1.",
    figure_size=(13.0, 4.4),
)
