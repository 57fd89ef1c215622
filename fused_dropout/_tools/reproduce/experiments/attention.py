"""Where a transformer drops: attention weights, feed-forward activations, residual branches.

Vaswani et al. 2017 drop the output of every sublayer before it is added to its input, and the sums
of embeddings and positions, at a rate of 0.1. Without it, row (D) of their table 3, the perplexity
of their translations rose from 4.92 to 5.77: dropout is "very helpful in avoiding over-fitting".
Large transformers also drop attention weights and feed-forward activations, at modest rates.

Here an encoder reads an image row by row: each row of pixels is a token.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fused_dropout import functional
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
from fused_dropout._tools.reproduce.plots import draw_curves, draw_errors_and_losses, labels_of
from fused_dropout._tools.reproduce.training import Recipe, final_figures, fit
from fused_dropout.nn import BiasActDropoutAdd, Dropout

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fused_dropout._tools.reproduce.results import Results

_WIDTH, _HEADS, _FEED_FORWARD, _BLOCKS = 32, 4, 64, 2

SETTINGS = (
    Setting("none", "no dropout"),
    Setting("attention", "attention weights .1", {"attention": 0.1}),
    Setting("feed_forward", "feed-forward activations .1", {"feed_forward": 0.1}),
    Setting("residual", "residual branches .1", {"residual": 0.1}),
    Setting("all", "all three .1", {"attention": 0.1, "feed_forward": 0.1, "residual": 0.1}),
)


class Attention(nn.Module):
    """Self-attention with several heads, whose weights are dropped with probability p."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.project = nn.Linear(_WIDTH, 3 * _WIDTH)
        self.output = nn.Linear(_WIDTH, _WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.project(x).unflatten(-1, (3, _HEADS, _WIDTH // _HEADS))
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)  # each [N, heads, tokens, width]
        scores = queries @ keys.transpose(-2, -1) / math.sqrt(_WIDTH // _HEADS)
        weights = functional.dropout(scores.softmax(-1), self.p, self.training)
        return self.output((weights @ values).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention, then two linear layers; after each x becomes norm(x + dropout(branch))."""

    def __init__(self, attention: float, feed_forward: float, residual: float) -> None:
        super().__init__()
        self.attention = Attention(attention)
        self.add_attention = BiasActDropoutAdd(_WIDTH, residual)
        self.norm_attention = nn.LayerNorm(_WIDTH)
        self.feed_forward = nn.Sequential(
            nn.Linear(_WIDTH, _FEED_FORWARD, bias=False),
            BiasActDropoutAdd(_FEED_FORWARD, feed_forward, "relu"),
            nn.Linear(_FEED_FORWARD, _WIDTH, bias=False),
        )
        self.add_feed_forward = BiasActDropoutAdd(_WIDTH, residual)
        self.norm_feed_forward = nn.LayerNorm(_WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm_attention(self.add_attention(self.attention(x), x))
        return self.norm_feed_forward(self.add_feed_forward(self.feed_forward(x), x))


class Encoder(nn.Module):
    """Rows of an image to classes: embedding, learned positions, blocks, mean of the tokens."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        attention: float = 0.0,
        feed_forward: float = 0.0,
        residual: float = 0.0,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        self.shape = shape
        self.embed = nn.Linear(channels * width, _WIDTH)
        self.positions = nn.Parameter(0.02 * torch.randn(height, _WIDTH))
        self.dropout = Dropout(residual)
        self.blocks = nn.Sequential(
            *(Block(attention, feed_forward, residual) for _ in range(_BLOCKS))
        )
        self.classify = nn.Linear(_WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.unflatten(1, self.shape).transpose(1, 2).flatten(2)  # [N, height, numbers]
        tokens = self.dropout(self.embed(rows) + self.positions)
        return self.classify(self.blocks(tokens).mean(1))


def run(job: Job) -> Measured:
    """Train with Adam, with test loss on some images after each epoch, and test at the end."""
    assert job.data is not None
    data = job.data.with_fewer_tests(job.budget.options["tests"])
    encoder = Encoder(data.shape, **job.options)
    recipe = Recipe(job.budget.epochs, batch_size=25, lr=4e-3, adam=True, decays=True)
    fewer = data.with_fewer_tests(500)
    curves = fit(encoder, data.train, recipe, job.seed, job.report, test=fewer.test)
    return Measured(final_figures(encoder, data), {"test_loss": curves.test_loss})


def draw(figure: Figure, results: Results) -> None:
    """Test errors and losses, and the test loss over time."""
    error, loss, curves = figure.subplots(1, 3, width_ratios=(1, 1, 1.1))
    labels = labels_of(SETTINGS)
    draw_errors_and_losses(error, loss, results, labels)
    draw_curves(curves, results, labels, "test_loss")
    curves.set_title("test cross entropy over time")
    curves.set_xlabel("epoch")


EXPERIMENT = Experiment(
    name="attention",
    title="Where a transformer drops",
    question="What do the kinds of dropout in a transformer do to its test error and loss?",
    source="Vaswani et al., Attention Is All You Need, 2017, section 5.4 and table 3 (D)",
    data=("fashion-mnist", "mnist"),
    settings=SETTINGS,
    metrics=(
        Metric("train_loss", "training cross entropy, nats"),
        Metric("loss", "test cross entropy, nats"),
        Metric("error", "test error, %", 2),
    ),
    checks=(
        Ordering(
            "dropout of residual branches lowers the test cross entropy", "loss", "residual", "none"
        ),
        Ordering("dropout of residual branches lowers the error", "error", "residual", "none"),
    ),
    chosen=(
        "the number of images and epochs was chosen where the network overfits; the error was "
        "open at five seeds, and it stayed at five."
    ),
    run=run,
    draw=draw,
    quick=Budget(seeds=2, epochs=1, examples=200, time="8 s", options={"tests": 500}),
    default=Budget(seeds=5, epochs=45, examples=400, time="8 min", options={"tests": 10_000}),
    full=Budget(seeds=5, epochs=100, time="50 h", options={"tests": 10_000}),
    smaller=(
        "the source trained encoders and decoders of 6 blocks and width 512 on 4.5 million pairs "
        "of sentences; here 2 blocks of width 32 learn 400 images of Fashion-MNIST, their rows "
        "as tokens."
    ),
)
