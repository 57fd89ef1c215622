"""A word-level language model with and without the dropout of AWD-LSTM.

    python examples/awd_lstm.py
    python examples/awd_lstm.py --text book.txt

AWD-LSTM (Merity, Keskar and Socher 2018) drops everything in an LSTM that can be dropped: whole
words of the embedding (EmbeddingDropout), features of the layers' inputs and outputs, the same in
all steps (LockedDropout), and the recurrent weights themselves (WeightDrop). Embedding and output
layer share their weights. Without all this a model of this size learns a small text by heart.

The script trains the same model twice on the first part of a text, with and without dropout, and
shows the perplexity on the rest after each epoch: the number of words that it hesitates between. A
sample is drawn from the model that drops. Without --text the text is made by a small grammar, in
which verbs agree with subjects that may stand some words before, and whose own perplexity is known:
no model can do better. Of a long text the first words are used (--words).

This is AWD-LSTM's dropout, not its record: Adam takes the place of averaged SGD, and the sizes are
for minutes on two cores.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from fused_dropout.nn import EmbeddingDropout, LockedDropout, WeightDrop

END, UNKNOWN = "<eos>", "<unk>"
LAYERS = 2
TRAINED = 0.75  # the share of the text that is trained on
WITH, WITHOUT = "with dropout", "without"
State = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Rates:
    """Drop probabilities, named as the options of AWD-LSTM's own script."""

    dropoute: float = 0.05  # words of the embedding
    dropouti: float = 0.2  # the LSTM's input
    dropouth: float = 0.2  # between layers
    wdrop: float = 0.4  # recurrent weights
    dropout: float = 0.3  # the LSTM's output


NO_DROPOUT = Rates(0.0, 0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Size:
    """Of the text, the model and its training."""

    words: int
    embedding: int
    hidden: int
    epochs: int
    batch: int = 5
    steps: int = 20


@dataclass
class Run:
    """What one model gave: cross entropy in nats per word, after each epoch."""

    model: LanguageModel
    trained: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    seconds: float = 0.0


# ---- the text ------------------------------------------------------------------------------------


class Grammar:
    """Sentences such as "many old clerks that one letter object wait", with their probability.

    Each topic has nouns and verbs of its own, and a verb has the number of its subject.
    """

    TOPICS = (
        ("clerk lawyer judge letter contract ruling", "sign read wait write object answer"),
        ("sailor captain ship harbour storm island", "sail drift anchor turn sink rise"),
        ("farmer horse field river barn orchard", "grow rest flood bloom plough sleep"),
        ("singer choir violin hall piano audience", "sing play hum listen applaud tune"),
    )
    ADJECTIVES = "old young quiet large small bright grey famous tired distant"
    ADVERBS = "slowly often today again"

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self.nats = 0.0  # minus the logarithm of the probability of all that was made

    def sentence(self) -> list[str]:
        nouns, verbs = (words.split() for words in self._pick(self.TOPICS))
        words = self._clause(nouns, verbs, depth=0)
        return [*words, *self._maybe(0.3, lambda: [self._pick(self.ADVERBS.split())]), END]

    def _clause(self, nouns: list[str], verbs: list[str], depth: int) -> list[str]:
        plural = self._chance(0.5)
        subject = [
            self._pick(("some", "many") if plural else ("one", "every")),
            *self._maybe(0.4, lambda: [self._pick(self.ADJECTIVES.split())]),
            self._pick(nouns) + ("s" if plural else ""),
        ]
        inner = self._maybe(
            0.3, lambda: ["that", *self._clause(nouns, verbs, depth + 1)], depth < 2
        )
        return [*subject, *inner, self._pick(verbs) + ("" if plural else "s")]

    def _chance(self, share: float) -> bool:
        happens = self._random.random() < share
        self.nats -= math.log(share if happens else 1 - share)
        return happens

    def _maybe(self, share: float, make: Any, allowed: bool = True) -> list[str]:
        found: list[str] = make() if allowed and self._chance(share) else []
        return found

    def _pick(self, choices: Any) -> Any:
        """The first choices are the likelier ones: the k-th has a weight of 1 / k."""
        weights = [1 / k for k in range(1, len(choices) + 1)]
        (place,) = self._random.choices(range(len(choices)), weights)
        self.nats -= math.log(weights[place] / sum(weights))
        return choices[place]


def made_text(count: int, seed: int) -> tuple[list[str], float]:
    """At least so many words, and the perplexity of the grammar that made them."""
    grammar = Grammar(seed)
    words: list[str] = []
    while len(words) < count:
        words += grammar.sentence()
    return words, math.exp(grammar.nats / len(words))


def words_of(text: str) -> list[str]:
    """Lower-case words and punctuation marks; a line ends with END."""
    lines = (re.findall(r"\w+(?:'\w+)?|[^\w\s]", line.lower()) for line in text.splitlines())
    return [word for line in lines if line for word in (*line, END)]


class Corpus:
    """A text as numbers: columns of consecutive words, to train on and to test on."""

    def __init__(self, words: list[str], batch: int, most_words: int = 10_000) -> None:
        cut = int(len(words) * TRAINED)
        common = Counter(words[:cut]).most_common(most_words - 2)
        self.vocabulary = list(dict.fromkeys([END, UNKNOWN, *(word for word, _ in common)]))
        number = {word: k for k, word in enumerate(self.vocabulary)}
        numbers = torch.tensor([number.get(word, 1) for word in words])
        self.trained = self._columns(numbers[:cut], batch)
        self.held_out = self._columns(numbers[cut:], min(batch, 10))

    @staticmethod
    def _columns(numbers: Tensor, count: int) -> Tensor:
        rows = len(numbers) // count
        return numbers[: rows * count].view(count, rows).t().contiguous()


# ---- the model -----------------------------------------------------------------------------------


class LanguageModel(nn.Module):
    """Words [T, N] to logits [T, N, vocabulary], and the layers' states to go on from."""

    def __init__(self, vocabulary: int, size: Size, rates: Rates) -> None:
        super().__init__()
        self.embedding = EmbeddingDropout(vocabulary, size.embedding, p=rates.dropoute)
        self.drop_input = LockedDropout(rates.dropouti)
        self.drop_between = LockedDropout(rates.dropouth)
        self.drop_output = LockedDropout(rates.dropout)
        widths = [size.embedding, *[size.hidden] * (LAYERS - 1), size.embedding]
        self.layers = nn.ModuleList(
            WeightDrop(nn.LSTM(inner, outer), "weight_hh_l0", rates.wdrop)
            for inner, outer in pairwise(widths)
        )
        self.decoder = nn.Linear(size.embedding, vocabulary)
        self.decoder.weight = self.embedding.weight  # tied (Press and Wolf 2017)
        nn.init.uniform_(self.decoder.weight, -0.1, 0.1)

    def forward(self, words: Tensor, states: State | None = None) -> tuple[Tensor, State]:
        x = self.drop_input(self.embedding(words))
        after: State = []
        for place, lstm in enumerate(self.layers):
            x, state = lstm(x, None if states is None else states[place])
            x = self.drop_between(x) if place + 1 < LAYERS else self.drop_output(x)
            after.append(state)
        return self.decoder(x), after


def loss_of(model: LanguageModel, words: Tensor, states: State | None) -> tuple[Tensor, State]:
    """Cross entropy of each next word, in nats."""
    logits, states = model(words[:-1], states)
    detached = [(h.detach(), c.detach()) for h, c in states]
    return F.cross_entropy(logits.flatten(0, 1), words[1:].flatten()), detached


def train_epoch(model: LanguageModel, text: Tensor, size: Size, optimizer: Any) -> float:
    """One pass over the text; the mean loss, with dropout on where the model has it."""
    model.train()
    states, losses = None, []
    for start in range(0, len(text) - 1, size.steps):
        loss, states = loss_of(model, text[start : start + size.steps + 1], states)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def evaluate(model: LanguageModel, text: Tensor) -> float:
    model.eval()
    return loss_of(model, text, None)[0].item()


def train(corpus: Corpus, size: Size, rates: Rates, seed: int, label: str, bar: Progress) -> Run:
    torch.manual_seed(seed)
    run = Run(LanguageModel(len(corpus.vocabulary), size, rates))
    optimizer = torch.optim.AdamW(run.model.parameters(), 3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.02, size.epochs)
    task, start = bar.add_task(label, total=size.epochs), time.perf_counter()
    for _ in range(size.epochs):
        run.trained.append(train_epoch(run.model, corpus.trained, size, optimizer))
        run.held_out.append(evaluate(run.model, corpus.held_out))
        schedule.step()
        bar.update(
            task, advance=1, description=f"{label}, perplexity {math.exp(run.held_out[-1]):.1f}"
        )
    run.seconds = time.perf_counter() - start
    return run


@torch.no_grad()
def sample(model: LanguageModel, vocabulary: list[str], count: int, seed: int) -> str:
    """Words drawn one after the other, from the start of a line."""
    model.eval()
    draw = torch.Generator().manual_seed(seed)
    word, states, drawn = torch.zeros(1, 1, dtype=torch.int64), None, []
    for _ in range(count):
        logits, states = model(word, states)
        odds = logits[0, 0].softmax(0)
        odds[1] = 0.0  # not the unknown word
        word = torch.multinomial(odds, 1, generator=draw).view(1, 1)
        drawn.append(vocabulary[int(word)])
    return " ".join(drawn).replace(f" {END}", "\n").replace("\n ", "\n")


# ---- what is shown -------------------------------------------------------------------------------


def table_of(runs: dict[str, Run], own: float | None) -> Table:
    table = Table(title="Perplexity on the rest of the text (lower is better)")
    for heading in ("", "best epoch", "best", "last", "last, trained text", "seconds"):
        table.add_column(heading, justify="right" if heading else "left")
    for label, run in runs.items():
        best = min(range(len(run.held_out)), key=run.held_out.__getitem__)
        figures = (
            math.exp(nats) for nats in (run.held_out[best], run.held_out[-1], run.trained[-1])
        )
        table.add_row(label, str(best + 1), *(f"{it:.2f}" for it in figures), f"{run.seconds:.0f}")
    if own is not None:
        table.add_row("the grammar itself", "", f"{own:.2f}", "", "", "")
    return table


def save_picture(path: Path, runs: dict[str, Run], own: float | None) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for color, (label, run) in zip(("C0", "C1"), runs.items(), strict=True):
        epochs = range(1, len(run.trained) + 1)
        axes.plot(epochs, run.held_out, color, label=f"{label}: rest of the text")
        axes.plot(epochs, run.trained, color, ls=":", label=f"{label}: while training")
    if own is not None:
        axes.axhline(math.log(own), color="grey", ls="--", label="the grammar itself")
    axes.set(xlabel="epoch", ylabel="cross entropy, nats per word (lower is better)")
    axes.set_title("A language model with and without AWD-LSTM's dropout")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--text", type=Path, metavar="FILE", help="default: one that is made here")
    parser.add_argument("--words", type=int, metavar="N", help="how many to use at most")
    parser.add_argument("--out", type=Path, default=Path("build/examples"), metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="seconds: a tiny model, few epochs")
    options = parser.parse_args()
    if options.words is not None and options.words < 1000:
        parser.error(f"--words must be at least 1000, got {options.words}")
    if options.text is not None and not options.text.is_file():
        parser.error(f"--text must be a file, got {options.text}")
    return options


def main() -> None:
    options = arguments()
    console = Console()
    size = Size(1500, 24, 32, 2) if options.quick else Size(4000, 128, 200, 70)
    count = options.words or size.words
    if options.text is None:
        words, own = made_text(count, options.seed)
    else:
        words, own = words_of(options.text.read_text(errors="replace"))[:count], None
        if len(words) < 1000:
            raise SystemExit(f"--text must have at least 1000 words, got {len(words)}")
    corpus = Corpus(words, size.batch)
    console.print(f"{len(words)} words, {len(corpus.vocabulary)} different ones")
    with Progress(console=console) as bar:
        runs = {
            label: train(corpus, size, rates, options.seed, label, bar)
            for label, rates in ((WITH, Rates()), (WITHOUT, NO_DROPOUT))
        }
    console.print(table_of(runs, own))
    console.print(f"A sample of the model {WITH}:", style="bold")
    console.print(sample(runs[WITH].model, corpus.vocabulary, 60, options.seed), markup=False)
    path = options.out / "awd_lstm.png"
    save_picture(path, runs, own)
    console.print(f"Picture: {path}", soft_wrap=True)


if __name__ == "__main__":
    main()
