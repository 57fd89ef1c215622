"""How the experiments train and test: minibatch SGD or Adam."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fused_dropout import max_norm_
from fused_dropout._tools.reproduce.data import Images

Examples = tuple[Tensor, Tensor]  # inputs and labels
Penalty = Callable[[nn.Module], Tensor]
_TEST_BATCH = 500


@dataclass(frozen=True)
class Recipe:
    """SGD or Adam, and its schedule. Two runs with the same seed see the same batches."""

    epochs: int
    batch_size: int = 128
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    decays: bool = False  # the learning rate falls linearly to 0, else it is constant
    max_norm: float | None = None  # of the weights into each unit
    label_smoothing: float = 0.0
    penalty: Penalty | None = None  # added to the loss, after forward
    adam: bool = False  # Adam instead of SGD; momentum is then not read


@dataclass
class Curves:
    """What training found after each epoch; tests in evaluation mode."""

    train_loss: list[float] = field(default_factory=list)  # of the dropping network, over the epoch
    test_accuracy: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)


def fit(
    network: nn.Module,
    train: Examples,
    recipe: Recipe,
    seed: int,
    report: Callable[[float], None] = lambda share: None,
    *,
    test: Examples | None = None,
    after_epoch: Callable[[int], None] = lambda epoch: None,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
) -> Curves:
    """Train a classifier, and test it on `test` after each epoch (None: no test, empty curves).

    The order of the batches depends on `seed` alone. `after_epoch` is called with the number of
    epochs done, in evaluation mode. `augment` changes a batch of inputs before the network sees it.
    """
    inputs, labels = train
    changes = torch.Generator().manual_seed(seed)  # of `augment`, so that it moves no batch
    curves = Curves()
    total = torch.zeros(())

    def loss_of(batch: Tensor) -> Tensor:
        x = inputs[batch] if augment is None else augment(inputs[batch], changes)
        loss = F.cross_entropy(network(x), labels[batch], label_smoothing=recipe.label_smoothing)
        total.add_(loss.detach() * len(batch))
        return loss if recipe.penalty is None else loss + recipe.penalty(network)

    def close_epoch(epoch: int) -> None:
        curves.train_loss.append(total.item() / len(inputs))
        total.zero_()
        if test is not None:
            accuracy, test_loss = tested(network, *test)
            curves.test_accuracy.append(accuracy)
            curves.test_loss.append(test_loss)
        after_epoch(epoch)

    _minimise(loss_of, network, len(inputs), recipe, seed, report, close_epoch)
    return curves


def fit_autoencoder(
    network: nn.Module,
    inputs: Tensor,
    recipe: Recipe,
    seed: int,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    report: Callable[[float], None] = lambda share: None,
    after_epoch: Callable[[int], None] = lambda epoch: None,
) -> None:
    """Train a network to give back its inputs; `loss_of` its outputs and the inputs falls.

    Label smoothing and a penalty are not read. The rest is as for `fit`.
    """

    def loss_of_batch(batch: Tensor) -> Tensor:
        x = inputs[batch]
        return loss_of(network(x), x)

    _minimise(loss_of_batch, network, len(inputs), recipe, seed, report, after_epoch)


def _minimise(
    loss_of: Callable[[Tensor], Tensor],
    network: nn.Module,
    examples: int,
    recipe: Recipe,
    seed: int,
    report: Callable[[float], None],
    after_epoch: Callable[[int], None],
) -> None:
    """The recipe's epochs; `loss_of` takes the indices of a batch's examples."""
    optimizer = _optimizer(network, recipe)
    order = torch.Generator().manual_seed(seed)
    steps = recipe.epochs * -(-examples // recipe.batch_size)
    step = 0
    for epoch in range(1, recipe.epochs + 1):
        network.train()
        for batch in torch.randperm(examples, generator=order).split(recipe.batch_size):
            if recipe.decays:
                for group in optimizer.param_groups:
                    group["lr"] = recipe.lr * (1.0 - step / steps)
            loss = loss_of(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if recipe.max_norm is not None:
                max_norm_(network, recipe.max_norm)
            step += 1
            if step % 16 == 0:
                report(step / steps)
        network.eval()
        after_epoch(epoch)


def _optimizer(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters, lr, decay = network.parameters(), recipe.lr, recipe.weight_decay
    if recipe.adam:
        return torch.optim.Adam(parameters, lr=lr, weight_decay=decay)
    return torch.optim.SGD(parameters, lr=lr, momentum=recipe.momentum, weight_decay=decay)


def half_squared_distance(decoded: Tensor, inputs: Tensor) -> Tensor:
    """Summed over the features, mean over the batch."""
    return 0.5 * (decoded - inputs).square().sum(1).mean()


def logistic_cross_entropy(decoded: Tensor, inputs: Tensor) -> Tensor:
    """Of logistic outputs, given before the logistic function, and inputs in [0, 1].

    Summed over the features, mean over the batch.
    """
    return F.binary_cross_entropy_with_logits(decoded, inputs, reduction="sum") / len(inputs)


@torch.no_grad()
def outputs(network: nn.Module, inputs: Tensor) -> Tensor:
    """What the network says in its present mode, in batches that fit the cache."""
    return torch.cat([network(part) for part in inputs.split(_TEST_BATCH)])


def tested(network: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[float, float]:
    """Accuracy in [0, 1] and mean cross entropy, in the network's present mode."""
    logits = outputs(network, inputs)
    accuracy = (logits.argmax(1) == labels).float().mean().item()
    return accuracy, F.cross_entropy(logits, labels).item()


def final_figures(network: nn.Module, data: Images) -> dict[str, float]:
    """Cross entropy on the training and the test images, and the test error in percent."""
    accuracy, loss = tested(network, *data.test)
    return {
        "train_loss": tested(network, *data.train)[1],
        "loss": loss,
        "error": 100.0 * (1.0 - accuracy),
    }
